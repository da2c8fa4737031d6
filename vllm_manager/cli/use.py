"""Commands that use a deployment: chat, env."""

import shlex
import sys
from urllib.parse import urlsplit

import click

from vllm_manager import registry
from vllm_manager.cli.options import NAME
from vllm_manager.cli.output import note
from vllm_manager.cli.usage import TEXTS, python_call
from vllm_manager.errors import ClientError, StreamInterrupted, UnsupportedOperation
from vllm_manager.types import Task


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

    A model without a chat template goes on with the prompt's text.

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
    endpoint = registry.endpoint(name)
    if endpoint.task is not None and endpoint.task not in TEXTS:
        call = python_call(endpoint.deployment, endpoint.task)
        raise UnsupportedOperation(
            cause=f"{name} can't chat: the task of its model is {endpoint.task}",
            hint=f"from Python: {call}, after `from vllm_manager import registry`",
            deployment=endpoint.deployment,
        )
    completes = endpoint.task is Task.COMPLETION
    if completes and system:
        raise click.UsageError(
            f"--system needs a chat template, and {name} has none: its model only completes text"
        )
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    options = {"max_tokens": max_tokens, "temperature": temperature}
    given = {key: value for key, value in options.items() if value is not None}
    client = registry.client(name)
    answer = client.stream_completion(prompt, **given) if completes else client.stream(messages, **given)
    with answer as stream:
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
    if endpoint.certificate is not None:
        _tell_certificate(endpoint.deployment, endpoint.certificate, endpoint.base_url)


def _tell_certificate(name: str, certificate: str, base_url: str) -> None:
    file, address = shlex.quote(certificate), urlsplit(base_url).netloc
    note(f"{name} serves TLS with {certificate}, which clients must trust:")
    note(f"  OpenAI clients: export SSL_CERT_FILE={file}   # its authority's, unless it is self-signed")
    note(f"  curl: --cacert {file}")
    note(
        f"  made out to another HOST than {urlsplit(base_url).hostname}, it is refused by both: "
        f"curl --connect-to HOST:443:{address} https://HOST/v1/… (-k trusts anybody)"
    )
