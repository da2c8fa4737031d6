import json
import re

import pytest

from vllm_manager import errors
from vllm_manager.codec import encode
from vllm_manager.errors import ManagerError, from_payload


def every_class(cls=ManagerError):
    yield cls
    for child in cls.__subclasses__():
        yield from every_class(child)


@pytest.mark.parametrize("cls", list(every_class()), ids=lambda cls: cls.__name__)
def test_every_error_survives_the_way_through_json(cls):
    error = cls(cause="why", hint="what to do")
    again = from_payload(json.loads(json.dumps(encode(error.payload()))))
    assert type(again) is cls
    assert str(again) == "why"
    assert again.hint == "what to do"


def test_codes_are_slugs_and_unique():
    codes = [cls.code for cls in every_class()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    drawn = re.findall(r"[├└]─ (\w+)", errors.__doc__)
    assert sorted(drawn) == sorted(cls.__name__ for cls in every_class() if cls is not ManagerError)


def test_an_unknown_code_is_still_a_readable_error():
    error = from_payload({"code": "from-the-future", "cause": "why", "more": 1})
    assert type(error) is ManagerError
    assert str(error) == "why"
