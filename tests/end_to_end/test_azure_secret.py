"""The hub's token out of a key vault: Azure's real client against a vault on loopback, over TLS."""

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="the extra azure is not installed")

from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

from llama_endpoints.azure.key_vault import secret_of
from llama_endpoints.download.hub import token_of
from llama_serving.errors import SetupError
from tests.support.certificates import certificate as own

SECRETS = {"hub-token": "hf_FromTheVault", "empty": ""}
BEARER = "of-the-identity"


class Somebody:
    """An identity that Azure knows."""

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken(BEARER, 2**40)


class Nobody:
    """Nobody is logged in."""

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        raise ClientAuthenticationError("Nobody is logged in.")


class Vault(BaseHTTPRequestHandler):
    """A vault asks who it is, and then gives the secret, or says that there is none."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path.partition("?")[0])
        name = self.path.split("/")[2]
        if self.headers.get("Authorization") != f"Bearer {BEARER}":
            challenge = (
                'Bearer authorization="https://login.example/tenant", resource="https://vault.azure.net"'
            )
            self.answer(401, {}, challenge)
        elif name in SECRETS:
            self.answer(
                200, {"value": SECRETS[name], "id": f"https://vault/secrets/{name}/1", "attributes": {}}
            )
        else:
            self.answer(404, {"error": {"code": "SecretNotFound", "message": f"No {name} here.\nReally."}})

    def answer(self, status: int, body: dict[str, Any], challenge: str | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine's own, and its key, in one file."""
    return own(tmp_path_factory.mktemp("tls") / "vault.pem")


@pytest.fixture
def vault(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(Vault, "asked", [], raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vault)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client(certificate: Path) -> dict[str, Any]:
    """What the real client needs to take loopback for a vault."""
    return {"connection_verify": str(certificate), "verify_challenge_resource": False, "retry_total": 0}


def test_it_is_read_as_the_identity(vault: str, client: dict[str, Any]) -> None:
    assert secret_of(f"{vault}/secrets/hub-token", Somebody(), **client) == "hf_FromTheVault"
    assert Vault.asked == ["/secrets/hub-token/", "/secrets/hub-token/"]


def test_a_version_may_be_named(vault: str, client: dict[str, Any]) -> None:
    secret_of(f"{vault}/secrets/hub-token/{'0a' * 16}", Somebody(), **client)
    assert Vault.asked[-1] == f"/secrets/hub-token/{'0a' * 16}"


def test_it_becomes_the_hubs_token(vault: str, client: dict[str, Any]) -> None:
    token = token_of(secret=lambda: secret_of(f"{vault}/secrets/hub-token", Somebody(), **client))
    assert token == "hf_FromTheVault"


@pytest.mark.parametrize(
    ("name", "credential", "sentence"),
    [
        ("other", Somebody(), r"\(SecretNotFound\) No other here\. Assign the role"),
        ("hub-token", Nobody(), r"Nobody is logged in\. Assign the role"),
        ("empty", Somebody(), r"is empty\. Set it with `az keyvault secret set`\."),
    ],
)
def test_one_sentence_says_why_not(
    vault: str, client: dict[str, Any], name: str, credential: Any, sentence: str
) -> None:
    with pytest.raises(SetupError, match=sentence):
        secret_of(f"{vault}/secrets/{name}", credential, **client)


def test_a_vault_that_is_away(client: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(SetupError, match=r"^Cannot read https://127.0.0.1:9/secrets/hub-token: .*refused"):
        secret_of("https://127.0.0.1:9/secrets/hub-token", Somebody(), **client)


@pytest.mark.parametrize(
    "address", ["", "hub-token", "http://v.vault.azure.net/secrets/x", "https://v/keys/x", "https://v/secrets/"]
)
def test_no_address(address: str) -> None:
    with pytest.raises(
        SetupError, match=r"Invalid secret address .*: use https://VAULT.vault.azure.net/secrets/NAME."
    ):
        secret_of(address)
