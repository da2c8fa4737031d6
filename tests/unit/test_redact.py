import pytest

from vllm_manager.errors import EarlyExit
from vllm_manager.redact import MASK, names_a_secret, redact, redact_error, redact_variable


def test_known_secrets_are_masked_wherever_they_stand():
    assert redact("key=hunter22 and hunter22!", ["hunter22"]) == "key=*** and ***!"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcdef123", "Authorization: Bearer ***"),
        ("'api_key': ['sk-0123456789abcdef']", "'api_key': ['***']"),
        ("api_key=None", "api_key=None"),
        ("'api_key': '***'", "'api_key': '***'"),
        ("hf_token='hf_abcdefghijklmnopqrstuvwxyz'", "hf_token='***'"),
        ("got hf_abcdefghijklmnopqrstuvwxyz here", "got *** here"),
        ("the api_keys of others", "the api_keys of others"),
        ("task-0123456789abcdef", "task-0123456789abcdef"),
    ],
)
def test_shapes_of_secrets_are_masked_and_nothing_else(text, expected):
    assert redact(text) == expected


def test_an_error_is_masked_in_every_text_it_carries():
    error = EarlyExit(
        cause="no hunter22", log_tail=("a hunter22",), exception="hunter22", log_path="/hunter22"
    )
    masked = redact_error(error, ["hunter22"])
    assert isinstance(masked, EarlyExit)
    assert "hunter22" not in repr(masked.payload())
    assert error.cause == "no hunter22"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True), ("OPENAI_API_KEY", True), ("api-key", True), ("DB_PASSWORD", True),
        ("AWS_SECRET_ACCESS_KEY", True), ("max-num-batched-tokens", False), ("tokenizer-mode", False),
        ("TOKENIZERS_PARALLELISM", False), ("ssl-keyfile", False), ("PATH", False),
    ],
)  # fmt: skip
def test_names_tell_what_is_secret(name, secret):
    assert names_a_secret(name) is secret
    assert redact_variable(name, "a value") == (MASK if secret else "a value")


def test_a_password_in_an_address_is_masked():
    assert redact_variable("HTTPS_PROXY", "http://me:hunter22@proxy:3128/x") == "http://***@proxy:3128/x"
    assert redact_variable("HTTPS_PROXY", "http://proxy:3128") == "http://proxy:3128"
    assert redact_variable("A", "uses hunter22", ["hunter22"]) == "uses ***"
