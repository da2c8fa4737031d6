import io
import json
from pathlib import Path

import pytest

from vllm_manager.client import speech_wire, wire
from vllm_manager.errors import InvalidRequest, InvalidResponse
from vllm_manager.types import Endpoint, Phase

READY = Endpoint(
    deployment="w", model="w", names=("w",), root_url="http://h:1", phase=Phase.READY, api_key="sk-1"
)


def reply(payload: object) -> wire.Reply:
    return wire.Reply(endpoint=READY, status=200, headers={}, body=json.dumps(payload).encode())


def test_a_sound_may_be_a_path_its_bytes_or_an_open_file(tmp_path: Path):
    path = tmp_path / "speech.wav"
    path.write_bytes(b"RIFF")

    assert speech_wire.read_sound(path) == speech_wire.read_sound(str(path)) == ("speech.wav", b"RIFF")
    assert (
        speech_wire.read_sound(b"RIFF") == speech_wire.read_sound(io.BytesIO(b"RIFF")) == ("sound", b"RIFF")
    )
    with path.open("rb") as file:
        assert speech_wire.read_sound(file) == ("speech.wav", b"RIFF")


def test_a_sound_that_cannot_be_read_is_an_error_that_says_why(tmp_path: Path):
    with pytest.raises(InvalidRequest, match=r"missing.wav can't be read: No such file") as caught:
        speech_wire.read_sound(tmp_path / "missing.wav")
    assert caught.value.hint
    with pytest.raises(InvalidRequest, match="opened as text"):
        speech_wire.read_sound(io.StringIO("text"))  # type: ignore[arg-type]


def test_a_transcription_is_sent_as_a_form():
    request = speech_wire.transcription_request(("a.wav", b"RIFF"), "en", None, {"temperature": 0})(READY)

    assert (request.method, request.url) == ("POST", "http://h:1/v1/audio/transcriptions")
    assert request.form == {"model": "w", "language": "en", "temperature": 0}
    assert request.file == ("a.wav", b"RIFF")
    assert request.headers["Authorization"] == "Bearer sk-1"
    assert "Content-Type" not in request.headers  # it names the boundary, which httpx chooses
    with pytest.raises(InvalidRequest):
        speech_wire.transcription_request(("a.wav", b""), None, None, {"stream": True})


@pytest.mark.parametrize(
    ("payload", "text", "language", "seconds"),
    [
        ({"text": "hey", "usage": {"type": "duration", "seconds": 2}}, "hey", None, 2.0),
        ({"text": "", "language": "en", "duration": 2.5, "segments": []}, "", "en", 2.5),
        ({"text": ""}, "", None, None),
    ],
)
def test_a_transcription_is_read(payload, text, language, seconds):
    response = speech_wire.transcription_response(reply(payload))

    assert (str(response), response.language, response.seconds) == (text, language, seconds)
    assert response.raw == payload


@pytest.mark.parametrize("payload", [{}, {"text": None}, {"text": 7}, {"text": "", "usage": "x"}, []])
def test_a_200_without_a_text_is_an_invalid_response(payload):
    with pytest.raises(InvalidResponse):
        speech_wire.transcription_response(reply(payload))
