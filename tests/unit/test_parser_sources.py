from pathlib import Path

import pytest

from vllm_manager.engines.parser_sources import reasoning_parsers, tool_parsers

REGISTRY = '"""Doc."""\n_{}_PARSERS_TO_REGISTER = {}\n'

LLAMA = """
class Llama(ToolParser):
    bot_token: str = "<|bot|>"

    def __init__(self, tokenizer, tools=None):
        super().__init__(tokenizer, tools)
        self.bot_token_id = self.vocab.get(self.bot_token)
        if self.bot_token_id is None:
            raise RuntimeError("could not locate the bot token")
"""
PAIR = """
START = "<s>"
class Pair(ToolParser):
    def __init__(self, tokenizer, tools=None):
        super().__init__(tokenizer, tools)
        self.end_token: str = "</s>"
        self.start_id = self.vocab.get(START)
        self.end_id = self.vocab.get(self.end_token)
        self.other_id = self.vocab.get("<other>")
        if self.start_id is None or self.end_id is None:
            raise RuntimeError("could not locate start/end tokens")
"""
SUFFIXED = """
class Suffixed(ToolParser):
    def __init__(self, tokenizer, tools=None):
        super().__init__(tokenizer, tools)
        self.start: str = f"<s{tokenizer.suffix}>"
        self.start_id = self.vocab.get(self.start)
        if self.start_id is None:
            raise RuntimeError("could not locate the token")
"""
EITHER = """
class Either(ToolParser):
    def __init__(self, tokenizer, tools=None):
        self.a = self.vocab.get("<a>")
        self.b = self.vocab.get("<b>")
        if self.a is None and self.b is None:
            raise RuntimeError("neither")
"""
BASIC = """
class Thinking(ReasoningParser):
    @property
    def end_token(self):
        raise NotImplementedError

    def __init__(self, tokenizer, *args, **kwargs):
        super().__init__(tokenizer, *args, **kwargs)
        end_token_id = self.vocab.get(self.end_token)
        if end_token_id is None:
            raise RuntimeError("could not locate think tokens")
"""
R1 = """
from vllm.reasoning.basic import Thinking

class R1(Thinking):
    @property
    def end_token(self):
        '''The token that ends reasoning.'''
        return "</think>"
"""
OWN_INIT = """
from .basic import Thinking

class OwnInit(Thinking):
    end_token = "</own>"

    def __init__(self, tokenizer):
        self.parser = None
"""


def package(
    tmp_path: Path, kind: str, files: dict[str, str], names: dict[str, tuple[str, str]], place: str
) -> Path:
    directory = tmp_path / "vllm" / place
    directory.mkdir(parents=True)
    (directory / "__init__.py").write_text(REGISTRY.format(kind, names))
    for name, text in files.items():
        (directory / f"{name}.py").write_text(text)
    return tmp_path / "vllm"


@pytest.mark.parametrize("place", ["tool_parsers", "entrypoints/openai/tool_parsers"])
def test_names_and_the_tokens_that_a_parser_insists_on(tmp_path, place):
    files = {"llama": LLAMA, "pair": PAIR, "suffixed": SUFFIXED, "either": EITHER}
    names = {name: (name, name.title()) for name in files} | {"gone": ("gone", "Gone")}
    found = tool_parsers(package(tmp_path, "TOOL", files, names, place))
    assert found.names == ("either", "gone", "llama", "pair", "suffixed")
    assert found.tokens == {"llama": ("<|bot|>",), "pair": ("<s>", "</s>")}


def test_a_reasoning_parsers_tokens_come_from_its_base_class_too(tmp_path):
    files = {"basic": BASIC, "r1": R1, "own": OWN_INIT}
    names = {"r1": ("r1", "R1"), "own": ("own", "OwnInit")}
    found = reasoning_parsers(package(tmp_path, "REASONING", files, names, "reasoning"))
    assert found.names == ("own", "r1")
    assert found.tokens == {"r1": ("</think>",)}


@pytest.mark.parametrize("text", ["", "def broken(:", "_TOOL_PARSERS_TO_REGISTER = make()", None])
def test_what_cannot_be_read_is_unknown(tmp_path, text):
    directory = tmp_path / "vllm" / "tool_parsers"
    directory.mkdir(parents=True)
    if text is not None:
        (directory / "__init__.py").write_text(text)
    assert tool_parsers(tmp_path / "vllm") is None
