"""A throw-away engine: a directory that looks like a Python environment with vLLM in it."""

import shutil
import sys
from pathlib import Path

FAKE = [Path(__file__).with_name(name) for name in ("fake_vllm.py", "fake_model.py")]
# What is asked of a vLLM without starting it: its parser, and the names of its tool and reasoning parsers.
PACKAGE = {
    "__init__.py": "",
    "utils/__init__.py": "",
    "utils/argparse_utils.py": "from argparse import ArgumentParser as FlexibleArgumentParser\n",
    "entrypoints/__init__.py": "",
    "entrypoints/launchers/__init__.py": "",
    "entrypoints/launchers/cli_args.py": (
        "import fake_vllm\n\n\ndef make_arg_parser(parser):\n    return fake_vllm.make_parser(parser)\n"
    ),
    "tool_parsers/__init__.py": """
_TOOL_PARSERS_TO_REGISTER = {
    "hermes": ("hermes_tool_parser", "HermesToolParser"),
    "llama3_json": ("llama_tool_parser", "Llama3JsonToolParser"),
    "mistral": ("mistral_tool_parser", "MistralToolParser"),
}
""",
    "tool_parsers/llama_tool_parser.py": """
class Llama3JsonToolParser(ToolParser):
    bot_token: str = "<|python_tag|>"

    def __init__(self, tokenizer, tools=None):
        super().__init__(tokenizer, tools)
        self.bot_token_id = self.vocab.get(self.bot_token)
        if self.bot_token_id is None:
            raise RuntimeError("could not locate the bot token")
""",
    "reasoning/__init__.py": """
_REASONING_PARSERS_TO_REGISTER = {
    "deepseek_r1": ("deepseek_r1_reasoning_parser", "DeepSeekR1ReasoningParser"),
    "qwen3": ("qwen3_engine_reasoning_parser", "Qwen3ParserReasoningAdapter"),
}
""",
}
# execve(2): Linux takes 255 characters of a script's first line.
SHEBANG_LIMIT = 255


def make_fake_engine(directory: Path, version: str = "0.32.0+cpu") -> Path:
    """Make an engine whose ``bin/vllm`` is the fake; a version without ``+cpu`` behaves as on CUDA.

    Returns:
        Its ``bin/python``.
    """
    directory = directory.absolute()
    python = directory / "bin" / "python"
    shebang = f"#!{python}"
    if len(shebang) > SHEBANG_LIMIT:
        raise ValueError(f"{directory} is too long for a script's first line")
    packages = directory / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    metadata = packages / f"vllm-{version}.dist-info" / "METADATA"
    for parent in (python.parent, metadata.parent):
        parent.mkdir(parents=True)
    base = Path(getattr(sys, "_base_executable", sys.executable))
    python.symlink_to(base)
    (python.parent / "python3").symlink_to("python")
    (directory / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    # Copies, so that the engine is whole by itself and Python caches its bytecode.
    for source in FAKE:
        shutil.copy(source, packages)
    for name, text in PACKAGE.items():
        module = packages / "vllm" / name
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(text)
    vllm = python.parent / "vllm"
    vllm.write_text(f"{shebang}\nimport sys\nfrom fake_vllm import main\nsys.exit(main({version!r}))\n")
    vllm.chmod(0o755)
    return python
