import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_manager.client.text_stream import EventDecoder, TextStreamReader
from vllm_manager.client.values import Usage
from vllm_manager.errors import StreamInterrupted
from vllm_manager.types import Endpoint, Phase

RECORDED = {
    r["case"]: r["body"].encode()
    for r in json.loads((Path(__file__).parents[1] / "data/vllm-0.32-http-errors.json").read_text())
}
TINY = Endpoint(
    deployment="tiny", model="tiny", names=("tiny",), root_url="http://127.0.0.1:1", phase=Phase.READY
)


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def delta(text: str | None = None, finish: str | None = None, **fields) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text, **fields}, "finish_reason": finish}]})


DONE = b"data: [DONE]\n\n"


def read(data: bytes, step: int = 10**9) -> tuple[TextStreamReader, list]:
    reader, chunks = TextStreamReader(), []
    for start in range(0, len(data), step):
        chunks += reader.feed(data[start : start + step], TINY)
    reader.end(TINY)
    return reader, chunks


@pytest.mark.parametrize("step", [1, 7, 10**9])
def test_a_recorded_stream_is_read_however_it_is_cut_up(step):
    reader, chunks = read(RECORDED["200 chat stream"], step)

    assert [str(chunk) for chunk in chunks] == ["ov", "1", ""]
    assert (reader.text, reader.finish_reason) == ("ov1", "length")
    assert reader.usage == Usage(prompt_tokens=19, completion_tokens=4)


def test_a_recorded_stream_of_a_tool_call_yields_its_fragments():
    _, chunks = read(RECORDED["tools named stream"])

    assert chunks[0].tool_calls[0]["function"]["name"] == "get_weather"


def test_reasoning_is_kept_apart_from_the_text():
    reader, chunks = read(delta(reasoning="hm") + delta("yes") + delta(finish="stop") + DONE)

    assert (reader.reasoning, reader.text) == ("hm", "yes")
    assert [c.reasoning for c in chunks] == ["hm", "", ""]


def test_only_the_first_of_several_choices_makes_the_text():
    other = event({"choices": [{"index": 1, "delta": {"content": "B"}}]})

    reader, chunks = read(delta("A") + other + delta(finish="stop") + DONE)

    assert reader.text == "A"
    assert len(chunks) == 2


def test_comments_other_fields_and_crlf_are_understood():
    stream = b": ping\r\n\r\nevent: message\r\n" + delta("a", "stop").replace(b"\n", b"\r\n") + DONE

    assert read(stream)[0].text == "a"


@given(st.text())
def test_any_text_survives_also_with_unicode_line_ends(text):
    assert read(delta(text) + delta("\u2028\x85", "stop") + DONE, step=3)[0].text == text + "\u2028\x85"


def test_an_event_of_several_lines_is_joined():
    assert list(EventDecoder().feed(b"data: a\ndata:b\n\n")) == [b"a\nb"]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (b"", "connection was closed"),
        (b'data: {"choices": [{"index": 0, "del', "connection was closed"),
        (
            event({"error": {"message": "EngineCore\nencountered an issue", "code": 500}}) + DONE,
            "EngineCore enc",
        ),
        (event({"error": "scaling"}) + DONE, "scaling"),
        (delta(finish="abort") + DONE, "abort"),
        (b"data: <html>\n\n", "no event of such a stream"),
        (event(["list"]), "no event of such a stream"),
        (event({"choices": "x"}), "no event of such a stream"),
        (event({"choices": [], "usage": "x"}), "no event of such a stream"),
    ],
)
def test_a_stream_that_breaks_keeps_the_text_so_far(broken, words):
    with pytest.raises(StreamInterrupted, match=words) as caught:
        read(delta("half ") + delta("an answer") + broken)

    assert caught.value.partial == "half an answer"
    assert (caught.value.deployment, caught.value.status) == ("tiny", 200)


def test_a_stream_that_lost_only_its_usage_is_whole():
    reader, _ = read(delta("all") + delta(finish="stop"))

    assert (reader.text, reader.finish_reason, reader.usage) == ("all", "stop", None)


def test_a_stream_of_a_completion_is_read_as_well():
    def piece(text: str, finish: str | None = None) -> bytes:
        return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})

    reader, chunks = read(piece("once ") + piece("upon", "length") + DONE)

    assert [str(chunk) for chunk in chunks] == ["once ", "upon"]
    assert (reader.text, reader.finish_reason) == ("once upon", "length")
