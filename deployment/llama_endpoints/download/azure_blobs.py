"""Read a folder of blobs in Azure Storage through Azure's client: list its files, and read a file from an offset.

Each range has at most 4 MiB, the longest for which Azure returns an MD5; the client checks it. `If-Match` ties every range to
the listed content.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

from llama_endpoints.azure.credentials import error_line
from llama_endpoints.download.source import BrokenOff, Reading
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError
    from azure.storage.blob import ContainerClient

RANGE: Final = 4 << 20
_CONNECT_S: Final = 20
_READ_S: Final = 60
_TRANSIENT: Final = (408, 429, 500, 502, 503, 504)
_NO_RIGHT: Final = (401, 403)
_PART: Final = re.compile(r"(?!\.{1,2}\Z)[^\\\x00-\x1f\x7f]{1,180}")
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Blob:
    """A file as the storage lists it.

    Attributes:
        name: its path in the folder.
        etag: changes with every change of the file.
        md5: of the whole file, in hexadecimal, if the uploader set it.
    """

    name: str
    size: int
    etag: str
    md5: str | None = None

    @property
    def part(self) -> str:
        """The path of the partial file while it is downloaded."""
        path = PurePosixPath(self.name)
        return str(path.with_name(f".{path.name}.{re.sub(r'[^0-9A-Za-z]', '', self.etag)[:32]}.part"))

    @property
    def digest(self) -> str:
        """The expected checksum."""
        return self.md5 or ""

    @property
    def stated(self) -> str:
        """The expected checksum in words."""
        return f"MD5 {self.md5}" if self.md5 else "no checksum"

    def hasher(self) -> Any:
        """Return a hash object for the checksum."""
        return hashlib.md5(usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class BlobFolder:
    """A folder in a container.

    Attributes:
        account_url: such as `https://ACCOUNT.blob.core.windows.net`.
        prefix: prefix of the folder's files, ending with `/`.
        credential: an account key, a signature or an identity; None is anonymous.
        version: version of the model stored there, if it is a model.
    """

    account_url: str
    container: str
    prefix: str
    credential: Any = field(default=None, repr=False)
    version: str | None = None


@dataclass(slots=True)
class _Connection:
    client: "ContainerClient"
    prefix: str
    worked: bool = False


class Blobs:
    """The files of a folder in Azure Storage.

    A signature may expire during a long download: if a request that worked before is refused, the credential is renewed.
    """

    name = "Azure"

    def __init__(
        self, place: BlobFolder, renewed: Callable[[], BlobFolder], *, size_of_range: int = RANGE
    ) -> None:
        self._renewed, self._range, self._lock = renewed, size_of_range, Lock()
        self._connection = _connect(place, size_of_range)

    def list(self) -> tuple[Blob, ...]:
        """Return all files, ordered by name.

        Raises:
            SetupError: they cannot be listed, there are none, or a name is impossible on this machine.
            BrokenOff: a later try may work.
        """
        now = self._connection
        with self._errors(now, "the folder"):
            found = [
                Blob(_name_in(now.prefix, blob.name), blob.size, blob.etag.strip('"'), _md5(blob))
                for blob in now.client.list_blobs(name_starts_with=now.prefix, include=["metadata"])
                if not _is_folder(blob)
            ]
        now.worked = True
        if not found:
            raise SetupError(
                f"Folder {now.prefix} not found in {now.client.url.partition('?')[0]}. A folder with files is needed: "
                "check the path, and that it is not a single file."
            )
        return tuple(sorted(found, key=lambda blob: blob.name))

    @contextmanager
    def open(self, file: Blob, start: int) -> Iterator[Reading]:
        """Open a file's bytes from `start` on.

        Raises:
            SetupError: it cannot be read, no longer exists, or has changed.
            BrokenOff: the connection failed, or Azure asks to retry later.
        """
        from azure.core import MatchConditions

        now = self._connection
        with self._errors(now, file.name):
            stream = now.client.download_blob(
                now.prefix + file.name, offset=start, etag=f'"{file.etag}"', max_concurrency=1,
                match_condition=MatchConditions.IfNotModified, validate_content=True,
            )  # fmt: skip
            now.worked = True
            yield Reading(start, stream.chunks())

    @contextmanager
    def _errors(self, connection: _Connection, what: str) -> Iterator[None]:
        from azure.core.exceptions import AzureError, ClientAuthenticationError
        from requests import RequestException

        try:
            yield
        except RequestException as error:
            # Ranges whose checksum is verified are read where the client does not translate these errors.
            raise BrokenOff(error_line(error)) from error
        except AzureError as error:
            status = getattr(error, "status_code", None)
            if status is None and isinstance(error, ClientAuthenticationError):
                raise SetupError(
                    f"Azure Storage authentication failed: {error_line(error)}. Run `az login`."
                ) from error
            if status in _NO_RIGHT and connection.worked:
                self._renew(connection)
                raise BrokenOff(f"Azure answered {status}, since the credential expired") from error
            if status is None or status in _TRANSIENT:
                why = error_line(error) if status is None else f"Azure answered {status}"
                raise BrokenOff(why, _retry_after(error)) from error
            _refused(error, connection, what)

    def _renew(self, old: _Connection) -> None:
        with self._lock:  # several files are downloaded at a time
            if self._connection is old:
                self._connection = _connect(self._renewed(), self._range)


def _refused(error: "AzureError", connection: _Connection, what: str) -> NoReturn:
    """Raise the storage's error with advice."""
    status, where = getattr(error, "status_code", None), connection.client.url.partition("?")[0]
    code = getattr(error, "error_code", None) or "no code"
    if status in _NO_RIGHT:
        sentence = (
            f"Permission denied for {where} ({status} {code}). Ask for the role Storage Blob Data Reader on the storage account; "
            "if it has a firewall, connect from inside"
        )
    elif status == 412:
        sentence = f"{what} was changed in Azure while it was being downloaded. Run the same command again"
    elif status == 404:
        sentence = f"{what} no longer exists in {where} ({code}). Run the same command again"
    else:
        sentence = f"{where} refused {what} ({status} {code})"
    raise SetupError(f"{sentence}.") from error


def _connect(place: BlobFolder, size_of_range: int) -> _Connection:
    from azure.storage.blob import ContainerClient

    address = urlsplit(place.account_url)
    if address.scheme != "https" and address.hostname not in _LOOPBACK:
        raise SetupError(f"{place.account_url} must use https: nothing is sent unencrypted.")
    client = ContainerClient(
        place.account_url, place.container, place.credential, retry_total=0, max_chunk_get_size=size_of_range,
        max_single_get_size=size_of_range, connection_timeout=_CONNECT_S, read_timeout=_READ_S,
    )  # fmt: skip
    return _Connection(client, place.prefix)


def _name_in(prefix: str, name: str) -> str:
    inner = name.removeprefix(prefix)
    if not all(_PART.fullmatch(part) for part in inner.split("/")):
        raise SetupError(
            f"The Azure file name {inner!r} is impossible on this machine. Rename the file in Azure."
        )
    return inner


def _is_folder(blob: Any) -> bool:
    """Whether a blob is a folder, which hierarchical accounts list as an empty blob."""
    marks = {key.lower(): value for key, value in (blob.metadata or {}).items()}
    return str(marks.get("hdi_isfolder", "")).lower() == "true" or bool(blob.name.endswith("/"))


def _md5(blob: Any) -> str | None:
    stated = blob.content_settings.content_md5
    return bytes(stated).hex() if stated else None


def _retry_after(error: "AzureError") -> float | None:
    response = getattr(error, "response", None)
    seconds = str(response.headers.get("Retry-After", "")) if response is not None else ""
    return float(seconds) if seconds.isdigit() else None
