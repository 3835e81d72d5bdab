"""TLS: the server's certificate, which is read again when its files change. Connections that are open keep theirs."""

import asyncio
import logging
import ssl
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llama_serving.errors import SetupError
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

WATCH_S: Final = 2.0
"""Seconds between two looks at the files. They must be unchanged for as long before they are read."""
MOST_PAUSE: Final = 128
"""Looks between two tries with files that could not be used: 1, 2, 4, up to so many."""
_UNSAFE: Final = stat.S_IWGRP | stat.S_IRWXO

State = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of a certificate.

    Attributes:
        cert: the chain in PEM, the server's own certificate first; it may hold the key too.
        key: the private key in PEM; None is in `cert`.
        password: of an encrypted key.
        client_ca: certificates in PEM; clients must have one that they have signed. None asks for none.
    """

    cert: str
    key: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    client_ca: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> "TlsFiles | None":
        """Return the files that the settings name; None without TLS.

        Raises:
            SetupError: there are settings of TLS without a certificate.
        """
        if settings.tls_cert is None:
            for name in ("tls_key", "tls_key_password", "tls_client_ca"):
                if getattr(settings, name) is not None:
                    raise SetupError(f"LLAMA_{name.upper()} needs LLAMA_TLS_CERT: the file of the certificate.")
            return None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_key_password, settings.tls_client_ca)

    @property
    def key_file(self) -> str:
        """The file with the private key."""
        return self.key or self.cert

    def state(self) -> State:
        """Return what changes when a file does, through symbolic links; None for one that is missing."""
        return tuple(_state(path) for path in (self.cert, self.key_file, self.client_ca) if path is not None)

    def context(self) -> ssl.SSLContext:
        """Return a context of what the files hold now.

        Raises:
            SetupError: they cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.cert, self.key, self._password)
        except (OSError, ValueError) as error:
            raise SetupError(self._why(error)) from None
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca)
            except OSError as error:
                raise SetupError(
                    f"LLAMA_TLS_CLIENT_CA={self.client_ca} can't be used: {_reason(error)}."
                ) from None
        return context

    def warning(self) -> str | None:
        """Return what is unsafe about the key's file."""
        try:
            mode = stat.S_IMODE(Path(self.key_file).stat().st_mode)
        except OSError:
            return None
        if not mode & _UNSAFE:
            return None
        return f"others can read or replace the key {self.key_file} (mode {mode:o}): give it mode 600, or 640 for a group"

    def _password(self) -> str:
        # Without it, OpenSSL would ask the terminal.
        if self.password is None:
            raise SetupError(
                f"The key {self.key_file} is encrypted. Put its password into LLAMA_TLS_KEY_PASSWORD."
            )
        return self.password

    def _why(self, error: OSError | ValueError) -> str:
        names = f"LLAMA_TLS_CERT={self.cert}" + (f" with LLAMA_TLS_KEY={self.key}" if self.key else "")
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            return f"{names} can't be used: the key is not the certificate's. Give the two of one pair."
        if isinstance(error, ssl.SSLError) and self.password is not None and reason != "NO_START_LINE":
            return f"{names} can't be used: {_reason(error)}. Check LLAMA_TLS_KEY_PASSWORD too."
        return f"{names} can't be used: {_reason(error)}. Both are files in PEM."


class ServerCertificate(ssl.SSLContext):
    """The context that the server is given: each handshake uses the one of the files' last usable state. Thread-safe.

    Raises:
        SetupError: the files cannot be used at the start.
    """

    _files: TlsFiles
    _tried: State
    _refused: str | None
    _current: ssl.SSLContext
    _lock: threading.Lock

    @classmethod
    def of(cls, files: TlsFiles) -> "ServerCertificate":
        """Return the certificate of these files."""
        found = cls(ssl.PROTOCOL_TLS_SERVER)
        found._files, found._refused, found._lock = files, None, threading.Lock()
        found._load()
        return found

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Return the TLS side of a new connection: asyncio calls this for each."""
        return self._current.wrap_bio(*args, **kwargs)

    def reload(self, *, asked: bool = True) -> None:
        """Read the files again; keep the certificate that there is if they cannot be used.

        Args:
            asked: somebody waits for the outcome. Else a reason that was logged the last time is not logged again.
        """
        with self._lock:
            try:
                self._load()
            except SetupError as error:
                if asked or str(error) != self._refused:
                    _log.error("the certificate stays as it is: %s", error)
                self._refused = str(error)
            else:
                self._refused = None
                _log.info("the certificate was read again")

    async def watch(self) -> None:
        """Reload when the files have changed, and then stayed as they are for a moment: they may be half-written.

        Files that could not be used are tried again, ever more rarely: the reason may pass without a change of them, as when no
        file could be opened.
        """
        before, pause, left = self._tried, 1, 1
        while True:
            await asyncio.sleep(WATCH_S)
            now = await asyncio.to_thread(self._files.state)
            same, before = now == before, now
            if not same:
                continue
            if now != self._tried:
                pause = left = 1
            elif self._refused is None:
                continue
            elif left > 1:
                left -= 1
                continue
            else:
                pause = left = min(2 * pause, MOST_PAUSE)
            await asyncio.to_thread(self.reload, asked=False)

    def _load(self) -> None:
        self._tried = self._files.state()  # (first: what changes meanwhile is seen the next time)
        current = self._files.context()
        warning = self._files.warning()
        if warning is not None:
            _log.warning("%s", warning)
        self._current = current


def _state(path: str) -> tuple[int, ...] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _reason(error: OSError | ValueError) -> str:
    """Return an error's reason without OpenSSL's codes and without the file's content."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it is not in PEM").lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error)
