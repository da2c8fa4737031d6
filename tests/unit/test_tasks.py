import re
from pathlib import Path

import pytest

from vllm_manager.client import AsyncClient, Client
from vllm_manager.tasks import candidates, may_offer, operations
from vllm_manager.types import Task


@pytest.mark.parametrize(
    ("supported", "expected"),
    [
        (["generate"], (Task.CHAT, Task.COMPLETION)),
        (["transcription", "generate"], (Task.CHAT, Task.COMPLETION, Task.TRANSCRIPTION)),
        (["transcription"], (Task.TRANSCRIPTION,)),
        (["token_embed", "embed"], (Task.EMBED, Task.POOLING)),
        (["classify", "token_classify"], (Task.SCORE, Task.CLASSIFY, Task.POOLING)),
        (["token_classify"], (Task.POOLING,)),
        (["token_embed"], (Task.POOLING,)),
        (["plugin"], (Task.POOLING,)),
        (["realtime", "transcription"], (Task.TRANSCRIPTION,)),
    ],
)
def test_what_vllm_logs_narrows_down_what_a_model_may_be_for(supported, expected):
    assert candidates(supported) == expected


@pytest.mark.parametrize("supported", [[], ["something-new"]])
def test_without_a_known_task_all_are_possible_each_once(supported):
    found = candidates(supported)
    assert set(found) == set(Task)
    assert len(found) == len(Task)
    # What answers more than its own: an embedding model scores, a scorer classifies, all of them pool.
    order = [Task.CHAT, Task.COMPLETION, Task.EMBED, Task.SCORE, Task.CLASSIFY, Task.POOLING]
    assert [task for task in found if task in order] == order


@pytest.mark.parametrize("task", Task)
def test_what_a_task_offers_are_methods_of_both_clients(task):
    for operation in operations(task):
        assert callable(getattr(Client, operation))
        assert callable(getattr(AsyncClient, operation))
        assert may_offer(task, operation)


def test_some_models_offer_more_than_their_task():
    assert may_offer(Task.CHAT, "transcribe")
    assert "transcribe" not in operations(Task.CHAT)
    assert not may_offer(Task.CHAT, "embed")
    assert not may_offer(Task.TRANSCRIPTION, "chat")


@pytest.mark.parametrize("task", Task)
def test_the_readme_says_what_each_task_offers(task):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (row,) = re.findall(rf"^\| {task}[^|]*\| (.*) \|$", readme, re.MULTILINE)
    assert tuple(re.findall(r"`(\w+)`", row.partition(";")[0])) == operations(task)
    assert all(may_offer(task, name) for name in re.findall(r"`(\w+)`", row))
