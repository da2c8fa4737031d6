"""Deployments that serve HTTPS with a certificate of their own."""

import asyncio
from pathlib import Path

import pytest
import trustme
from box import Box

from vllm_manager import registry
from vllm_manager.errors import Unavailable


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The flags for a certificate that no authority of this machine signed, made out to another host."""
    authority = trustme.CA()
    certificate = authority.issue_cert("box.example")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    return {"ssl-keyfile": str(tmp_path / "key.pem"), "ssl-certfile": str(tmp_path / "certificate.pem")}


def test_it_gets_ready_and_answers_clients_over_tls(
    box: Box, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = box.manifest(
        "secure",
        args={"load-format": "dummy"} | files,
        api_key="generate",
        liveness={"after": 1.2, "timeout": 0.5},
    )
    box.run("up", manifest)
    assert box.endpoints()["secure"]["root_url"].startswith("https://127.0.0.1:")
    assert box.run("chat", "secure", "hello").stdout == "Hello, this is the fake model.\n"
    assert "OPENAI_BASE_URL=https://127.0.0.1:" in box.run("env", "secure").stdout

    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(box.state))

    async def ask() -> str:
        async with registry.async_client("secure") as client:
            return str(await client.chat("hello"))

    assert asyncio.run(ask()) == "Hello, this is the fake model."

    # Another certificate at that place is another server's.
    trustme.CA().issue_cert("box.example").cert_chain_pems[0].write_to_path(files["ssl-certfile"])
    with registry.client("secure") as client, pytest.raises(Unavailable, match="certificate verify failed"):
        client.chat("hello")
