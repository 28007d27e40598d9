"""Tokens of a real OpenID Connect provider, by its authorization code flow, at an agent in a process of its own."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.environments import environment
from tests.integration.server import PATIENCE, Server, ServerProcess, eventually, free_port, run, uvicorn_command

CLIENT, CALLBACK = "agent", "http://127.0.0.1:1/callback"

AGENT = """
from litestar_agentcore import BedrockAgentCoreApp, RequestContext

app = BedrockAgentCoreApp()


@app.entrypoint
def claims(payload, context: RequestContext):
    return context.claims
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[Server]:
    port = free_port()
    command = [str(environment("oidc") / "oidc-provider-mock"), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: is_open(port))
        yield Server(port)
    finally:
        process.kill()
        process.wait(PATIENCE)


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def agent(provider: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    (tmp_path / "oidc_agent.py").write_text(AGENT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("AGENTCORE_JWT_DISCOVERY_URL", f"{provider.url}/.well-known/openid-configuration")
    monkeypatch.setenv("AGENTCORE_JWT_ALLOWED_AUDIENCE", CLIENT)
    port = free_port()
    with run(uvicorn_command("oidc_agent", port), port) as server:
        yield server


def id_token(provider: Server, user: str, client_id: str) -> str:
    """Have a user sign in, and get the token for it."""
    asked = {"client_id": client_id, "redirect_uri": CALLBACK, "response_type": "code", "scope": "openid"}
    with provider.client() as client:
        redirected = client.post("/oauth2/authorize", params=asked, data={"sub": user})
        code = httpx.URL(redirected.headers["location"]).params["code"]
        grant = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        answer = client.post("/oauth2/token", data=grant, auth=(client_id, "secret"))
        token: str = answer.json()["id_token"]
    return token


def test_a_token_of_a_real_provider_lets_its_bearer_in(provider: Server, agent: ServerProcess) -> None:
    token = id_token(provider, "ann", CLIENT)
    with agent.client() as client:
        assert client.post("/invocations", json={}).status_code == 401
        answer = client.post("/invocations", json={}, headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["sub"], answer.json()["aud"]) == (200, "ann", [CLIENT])
        other = id_token(provider, "ann", "another-client")
        assert client.post("/invocations", json={}, headers={"Authorization": f"Bearer {other}"}).status_code == 403
        signature = token.rpartition(".")[2]
        forged = f"{other.rpartition('.')[0]}.{signature}"
        assert client.post("/invocations", json={}, headers={"Authorization": f"Bearer {forged}"}).status_code == 401
    assert token not in agent.stderr()
