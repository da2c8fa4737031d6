"""Commands that use a deployment: chat, env."""

import shlex
import sys

import click

from vllm_manager import registry
from vllm_manager.cli.options import NAME
from vllm_manager.errors import ClientError, StreamInterrupted


@click.command()
@NAME
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="A system message before the prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Length limit of the answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is the most likely answer.")
def chat(
    name: str, prompt: str | None, system: str | None, max_tokens: int | None, temperature: float | None
) -> None:
    """Send one message, and print the answer as it comes. Without PROMPT it is read from standard input.

    \b
    Examples:
      vllm-manager chat tiny "hello"
      git diff | vllm-manager chat llama --system "Review this change."
    """
    if prompt is None or prompt == "-":
        if sys.stdin.isatty():
            raise click.UsageError('give a prompt, as in: vllm-manager chat tiny "hello"')
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    options = {"max_tokens": max_tokens, "temperature": temperature}
    given = {key: value for key, value in options.items() if value is not None}
    with registry.client(name).stream(messages, **given) as stream:
        try:
            for chunk in stream:
                click.echo(chunk.text, nl=False)
                sys.stdout.flush()
        except StreamInterrupted:
            click.echo()
            raise
    click.echo()


@click.command()
@NAME
def env(name: str) -> None:
    """Print shell lines that point OpenAI clients at a deployment.

    \b
    Example:
      eval "$(vllm-manager env tiny)"
    """
    endpoint = registry.endpoint(name)
    if endpoint.base_url is None:
        raise ClientError(cause=f"{name} has no address yet", hint=f"`vllm-manager wait {name}` waits for it")
    values = {
        "OPENAI_BASE_URL": endpoint.base_url,
        # OpenAI's SDK refuses to start without a key, also where none is asked for.
        "OPENAI_API_KEY": endpoint.api_key or "none",
        "OPENAI_MODEL": endpoint.model,
    }
    for key, value in values.items():
        click.echo(f"export {key}={shlex.quote(value)}")
