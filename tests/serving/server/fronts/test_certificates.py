"""TLS: which certificates are taken, and how they are changed while the server runs."""

import asyncio
import itertools
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llama_serving.errors import SetupError
from llama_serving.server.fronts import certificates
from llama_serving.server.fronts.certificates import ServerCertificate, TlsFiles
from llama_serving.settings import Settings
from tests.support.calls import PATIENCE_S, until
from tests.support.carriers import Carried, carried
from tests.support.certificates import Authority, certificate

LONG = {"prompt": "def f(x):", "max_tokens": 1500, "ignore_eos": True, "temperature": 0, "stream": True}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.at(tmp_path / "ca.crt")


# --- what is taken ----------------------------------------------------------------------------------


def test_one_file_may_hold_both(tmp_path: Path) -> None:
    TlsFiles(str(certificate(tmp_path / "both.pem"))).context()


def test_an_encrypted_key_needs_its_password_and_asks_nobody(authority: Authority, tmp_path: Path) -> None:
    cert, key = map(str, authority.pair(tmp_path / "pair", password="open sesame"))
    TlsFiles(cert, key, "open sesame").context()
    with pytest.raises(SetupError, match=r"is encrypted\. Put its password into LLAMA_TLS_KEY_PASSWORD"):
        TlsFiles(cert, key).context()
    with pytest.raises(SetupError, match="Check LLAMA_TLS_KEY_PASSWORD too") as wrong:
        TlsFiles(cert, key, "hidden").context()
    assert "hidden" not in f"{wrong.value}{TlsFiles(cert, key, 'hidden')}"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda cert, key: cert.unlink(), "No such file"),
        (lambda cert, key: key.unlink(), "No such file"),
        (lambda cert, key: cert.write_bytes(b""), "Both are files in PEM"),
        (lambda cert, key: key.write_bytes(key.read_bytes()[:60]), "can't be used"),
        (lambda cert, key: cert.write_bytes(cert.read_bytes()[:200]), "can't be used"),
        (lambda cert, key: cert.write_bytes(b"\xff" * 100), "can't be used"),
        (lambda cert, key: key.write_bytes(cert.read_bytes()), "can't be used"),
    ],
)
def test_files_that_cant_be_used_are_a_sentence(
    authority: Authority, tmp_path: Path, spoil: Callable[[Path, Path], object], says: str
) -> None:
    cert, key = authority.pair(tmp_path / "pair")
    spoil(cert, key)
    with pytest.raises(SetupError, match=says) as refused:
        TlsFiles(str(cert), str(key)).context()
    assert str(cert) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_key_of_another_certificate(authority: Authority, tmp_path: Path) -> None:
    cert, _ = authority.pair(tmp_path / "one")
    _, key = authority.pair(tmp_path / "other")
    with pytest.raises(SetupError, match="the key is not the certificate's"):
        TlsFiles(str(cert), str(key)).context()


@pytest.mark.parametrize("name", ["tls_key", "tls_key_password", "tls_client_ca"])
def test_what_goes_with_a_certificate_needs_one(name: str) -> None:
    with pytest.raises(SetupError, match=f"LLAMA_{name.upper()} needs LLAMA_TLS_CERT"):
        TlsFiles.of(Settings(**{name: "x"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "unsafe"),
    [(0o600, False), (0o640, False), (0o400, False), (0o644, True), (0o660, True), (0o602, True)],
)
def test_a_key_that_others_can_read_or_replace_is_told(
    authority: Authority, tmp_path: Path, mode: int, unsafe: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = authority.pair(tmp_path / "pair")
    key.chmod(mode)
    ServerCertificate.of(TlsFiles(str(cert), str(key)))
    assert (f"(mode {mode:o})" in caplog.text) is unsafe


def test_files_that_are_still_being_written_are_not_read(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read once they are the same at two looks, and each state once."""
    monkeypatch.setattr(certificates, "WATCH_S", 0)
    looks = [0, 0, 1, 2, 3, 3, 3, 3, 4, 4, 4, 0, 3, 0, 0]  # (the first is the start's)
    read: list[int] = []
    last: list[int] = []

    def look(_: TlsFiles) -> tuple[int]:
        if not looks:
            raise EOFError
        last.append(looks.pop(0))
        return (last[-1],)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TlsFiles, "state", look)
        watched = ServerCertificate.of(TlsFiles(*map(str, authority.pair(tmp_path / "pair"))))

        def reload(*, asked: bool) -> None:
            assert not asked
            looks.insert(0, last[-1])
            watched._load()
            read.append(last[-1])

        patch.setattr(watched, "reload", reload)
        with pytest.raises(EOFError):
            asyncio.run(watched.watch())
    assert read == [3, 4, 0]


def test_what_could_not_be_used_is_tried_again_ever_more_rarely(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The files stay as they are; the reason passes. It is logged once, and again when it is another."""
    monkeypatch.setattr(certificates, "WATCH_S", 0)
    monkeypatch.setattr(certificates, "MOST_PAUSE", 8)
    reasons = ["Too many open files"] * 5 + ["Input/output error"] * 2
    looks, tries = 0, list[int]()

    def look(_: TlsFiles) -> tuple[int]:
        nonlocal looks
        looks += 1
        if looks == 100:
            raise EOFError
        return (int(looks > 2),)

    watched = ServerCertificate.of(TlsFiles(*map(str, authority.pair(tmp_path / "pair"))))
    good = watched._files.context()

    def context(_: TlsFiles) -> ssl.SSLContext:
        tries.append(looks)
        if len(tries) <= len(reasons):
            raise SetupError(reasons[len(tries) - 1])
        return good

    monkeypatch.setattr(TlsFiles, "context", context)
    monkeypatch.setattr(TlsFiles, "state", look)
    watched._tried = (0,)
    with pytest.raises(EOFError):
        asyncio.run(watched.watch())
    assert watched._current is good
    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert pauses == [2, 3, 5, 9, 9, 9, 9]  # (each try looks once itself)
    assert [caplog.text.count(reason) for reason in dict.fromkeys(reasons)] == [1, 1]


def test_a_changed_mode_is_a_change(authority: Authority, tmp_path: Path) -> None:
    """The key may have been unreadable."""
    cert, key = authority.pair(tmp_path / "pair")
    files = TlsFiles(str(cert), str(key))
    before = files.state()

    def changed() -> bool:
        key.chmod(0o640)
        return files.state() != before

    until(changed)


# --- the server -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A server's two files, and the authority that it may go over to."""

    own: Carried
    folder: Path
    new: Authority

    def replace(self, *, whole: bool = True) -> None:
        """Put the new authority's pair into place, or the certificate alone."""
        cert, key = self.new.pair(self.folder / "new")
        cert.replace(self.folder / "server.crt")
        if whole:
            key.replace(self.folder / "server.key")

    def complete(self) -> None:
        (self.folder / "new" / "server.key").replace(self.folder / "server.key")

    def signed_by(self) -> str:
        """Who has signed the certificate that new connections get."""
        for authority in ("ca", "new"):
            context = ssl.create_default_context(cafile=self.folder / f"{authority}.crt")
            place = urlsplit(self.own.server.url)
            try:
                with socket.create_connection((place.hostname or "", place.port or 0), PATIENCE_S) as plain:
                    context.wrap_socket(plain, server_hostname=place.hostname).close()
            except ssl.SSLCertVerificationError:
                continue
            return authority
        return "nobody"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(certificates, "WATCH_S", 0.05)
    with carried("tls", tmp_path) as own:
        yield Pair(own, tmp_path, Authority.at(tmp_path / "new.crt", "new"))


def test_a_changed_pair_is_taken_and_open_connections_go_on(pair: Pair) -> None:
    with pair.own.opened(LONG) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
        assert pair.signed_by() == "ca"
        pair.replace()
        until(lambda: pair.signed_by() == "new")
        received = b""
        while b"[DONE]" not in received[-200:]:
            received += connection.recv(65536)


def test_half_of_a_new_pair_changes_nothing_until_the_other_half_comes(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.replace(whole=False)
    until(lambda: "the certificate stays as it is" in caplog.text)
    assert "the key is not the certificate's" in caplog.text
    assert pair.signed_by() == "ca"
    pair.complete()
    until(lambda: pair.signed_by() == "new")
    assert caplog.text.count("stays as it is") == 1, "it is said once"


def test_a_file_that_is_gone_for_a_while(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    (pair.folder / "server.key").unlink()
    until(lambda: "the certificate stays as it is" in caplog.text)
    assert pair.signed_by() == "ca"
    pair.replace()
    until(lambda: pair.signed_by() == "new")


def test_sighup_reads_the_files_at_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(certificates, "WATCH_S", 3600.0)
    with caplog.at_level(logging.INFO):
        pair.own.server.signal(signal.SIGHUP)  # (the watch sleeps for the last time meanwhile)
        until(lambda: "the certificate was read again" in caplog.text)
        pair.replace()
        pair.own.server.signal(signal.SIGHUP)
        until(lambda: pair.signed_by() == "new")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_what_is_too_old_is_refused_and_no_certificate_is_asked_for(pair: Pair) -> None:
    context = ssl.create_default_context(cafile=pair.folder / "ca.crt")
    context.set_alpn_protocols(["h2", "http/1.1"])
    place = urlsplit(pair.own.server.url)
    with (
        pair.own.connect(handshake=False) as plain,
        context.wrap_socket(plain, server_hostname=place.hostname) as shaken,
    ):
        assert (shaken.version(), shaken.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
    assert pair.own.server.assembly.front.certificate is not None
    used = TlsFiles(str(pair.folder / "server.crt"), str(pair.folder / "server.key")).context()
    assert used.minimum_version == ssl.TLSVersion.TLSv1_2
    old = ssl.create_default_context(cafile=pair.folder / "ca.crt")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    assert answer(pair.own, old) == b""
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert answer(pair.own, old) == b"HTTP/1.1 200"


def test_plain_http_and_rubbish_at_a_tls_port_harm_nobody(pair: Pair) -> None:
    for sent in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 1000, b"\x16\x03\x01" + b"\xff" * 500):
        with pair.own.connect(handshake=False) as plain:
            plain.sendall(sent)
            while plain.recv(4096):
                pass
    assert pair.signed_by() == "ca"


def answer(own: Carried, context: ssl.SSLContext) -> bytes:
    """What comes back of a request; nothing if the server refuses the handshake, in its way or abruptly."""
    place = urlsplit(own.server.url)
    try:
        with (
            own.connect(handshake=False) as plain,
            context.wrap_socket(plain, server_hostname=place.hostname) as shaken,
        ):
            shaken.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            return shaken.recv(12)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_clients_need_a_certificate_where_their_authority_is_named(tmp_path: Path) -> None:
    theirs = Authority.at(tmp_path / "clients.crt", "clients")
    good, bad = theirs.pair(tmp_path / "good"), Authority.at(tmp_path / "x.crt").pair(tmp_path / "bad")
    with carried("tls", tmp_path, LLAMA_TLS_CLIENT_CA=str(theirs.path)) as own:
        assert own.trusted is not None
        own.trusted.load_cert_chain(*good)
        with own.client() as client:
            assert client.get("/version").status_code == 200
        for chain in (bad, None):
            context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
            if chain is not None:
                context.load_cert_chain(*chain)
            assert answer(own, context) == b""
    for text in ("", "rubbish"):
        theirs.path.write_text(text)
        cert, key = map(str, (tmp_path / "server.crt", tmp_path / "server.key"))
        with pytest.raises(SetupError, match=r"LLAMA_TLS_CLIENT_CA=.* can't be used"):
            TlsFiles(cert, key, client_ca=str(theirs.path)).context()
