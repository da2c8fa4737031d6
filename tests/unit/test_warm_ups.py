import io
import math
import wave

import pytest

from vllm_manager import warm_ups
from vllm_manager.errors import WarmUpFailed
from vllm_manager.types import Task

ABSENT = {"detail": "Not Found"}
NO_TEMPLATE = {"error": {"message": "... so you must provide a chat template if the tokenizer ..."}}


def data(**row) -> dict:
    return {"data": [{"index": 0, **row}]}


@pytest.mark.parametrize(
    ("task", "body"),
    [
        (Task.CHAT, {"choices": [{"message": {"content": ""}}], "usage": {"completion_tokens": 1}}),
        (Task.COMPLETION, {"usage": {"completion_tokens": 1}}),
        (Task.EMBED, data(embedding=[0.1, -1])),
        (Task.SCORE, data(score=0)),
        (Task.CLASSIFY, data(probs=[0.5, 0.5])),
        (Task.POOLING, data(data=[0.1, 0.2])),
        (Task.POOLING, data(data=[[0.1, 0.2], [0.3, 0.4]])),
        (Task.TRANSCRIPTION, {"text": ""}),
    ],
)
def test_an_answer_that_was_computed_is_a_proof(task, body):
    warm_ups.check(task, 200, body)


@pytest.mark.parametrize(
    ("task", "bodies"),
    [
        (Task.CHAT, [{"usage": {"completion_tokens": 0}}, {"usage": None}, {}]),
        (Task.COMPLETION, [{"usage": {"completion_tokens": 0}}, {"choices": []}]),
        (Task.EMBED, [data(embedding=[]), data(embedding=[math.nan]), data(embedding="AAAA"), {"data": []}]),
        (Task.SCORE, [data(score=None), data(score=math.inf), data(score=True), data()]),
        (Task.CLASSIFY, [data(probs=[None]), data(probs=[])]),
        (
            Task.POOLING,
            [
                data(data=[]),
                data(data=[[]]),
                data(data=[[1], [1, 2]]),
                data(data=[[1], 2]),
                data(data=[1, [2]]),
                data(data=[[math.nan]]),
                data(data=[[[1]]]),
                data(data="AAAA"),
            ],
        ),
        (Task.TRANSCRIPTION, [{"text": None}, {}]),
    ],
)
def test_an_answer_without_what_was_computed_is_none(task, bodies):
    for body in [*bodies, [], None, "text", {"data": "x"}]:
        with pytest.raises(WarmUpFailed) as caught:
            warm_ups.check(task, 200, body)
        assert warm_ups.WARM_UPS[task].name in caught.value.cause
        assert caught.value.hint


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
def test_an_error_says_what_failed_with_the_other_sides_words_and_a_hint(task, status):
    with pytest.raises(WarmUpFailed, match=f"failed with HTTP {status}: CUDA error") as caught:
        warm_ups.check(task, status, {"error": {"message": "CUDA error"}})
    assert caught.value.status == status
    assert caught.value.hint
    assert not caught.value.permanent


def test_missing_libraries_for_sound_are_named():
    body = {"error": {"message": "Invalid or unsupported audio file.", "type": "BadRequestError"}}
    with pytest.raises(WarmUpFailed) as caught:
        warm_ups.check(Task.TRANSCRIPTION, 400, body)
    assert "soundfile and av" in (caught.value.hint or "")
    assert caught.value.permanent


@pytest.mark.parametrize(
    ("task", "status", "body", "expected"),
    [
        (Task.EMBED, 404, ABSENT, False),
        (Task.EMBED, 404, {"error": {"message": "The model `x` does not exist."}}, True),
        (Task.EMBED, 405, ABSENT, False),
        (Task.EMBED, 501, {"error": {"message": "The model does not support Embeddings API"}}, False),
        (Task.CHAT, 400, NO_TEMPLATE, False),
        (Task.COMPLETION, 400, NO_TEMPLATE, True),
        (Task.CHAT, 400, {"error": {"message": "too long"}}, True),
        (Task.CHAT, 500, "Internal Server Error", True),
        (Task.CHAT, 200, {}, True),
    ],
)
def test_an_endpoint_that_is_not_there_is_told_from_one_that_fails(task, status, body, expected):
    assert warm_ups.offered(task, status, body) is expected


def test_every_task_has_a_warm_up():
    assert set(warm_ups.WARM_UPS) == set(Task)
    assert [task for task, known in warm_ups.WARM_UPS.items() if known.with_sound] == [Task.TRANSCRIPTION]


def test_the_sound_is_a_second_of_mono_pcm():
    with wave.open(io.BytesIO(warm_ups.sound())) as sound:
        assert sound.getnchannels() == 1
        assert sound.getnframes() == sound.getframerate() == warm_ups.SAMPLE_RATE
        assert len(set(sound.readframes(100))) > 1
