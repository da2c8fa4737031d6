"""What `up` says to try, and what `chat` names where a model can't."""

import ast

import pytest

from vllm_manager.cli.usage import examples, python_call
from vllm_manager.tasks import operations
from vllm_manager.types import Task


@pytest.mark.parametrize("task", Task)
def test_every_task_has_a_call_of_a_method_that_its_models_answer(task):
    call = python_call("tiny", task)
    assert isinstance(ast.parse(call, mode="eval").body, ast.Call)
    assert call.removeprefix('registry.client("tiny").').partition("(")[0] in operations(task)
    assert any(call in line for line in examples("tiny", task))


def test_only_what_answers_with_text_is_for_the_command_chat():
    chatting = {task for task in Task if any("manager chat tiny" in line for line in examples("tiny", task))}
    assert chatting == {Task.CHAT, Task.COMPLETION}
    assert examples("tiny", None) == examples("tiny", Task.CHAT)
