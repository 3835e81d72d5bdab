"""A model hub, through huggingface_hub. No other file imports it.

Its session, errors and token are used, but not its downloads: version 2.x downloads to a random file name, so that a killed
download cannot be resumed, and Xet downloads cannot either. Plain HTTP has ranges for every file.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from llama_endpoints.download.hub_snapshot import HubFile, Snapshot
from llama_endpoints.download.source import BrokenOff, Reading
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

_API_TIMEOUT_S: Final = 60
_TRANSIENT: Final = (408, 429, 500, 502, 503, 504)
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
_TOKEN: Final = re.compile(r"[!-~]+")
LOG_IN: Final = "set HF_TOKEN to a token of your account, or run `hf auth login`"


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub and the token to use.

    Attributes:
        token: the token; None is anonymous.
        endpoint: the hub's address; None is HF_ENDPOINT or the public hub.
    """

    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None

    @property
    def address(self) -> str:
        """The hub's address."""
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    def snapshot(self, repo: str, revision: str | None) -> Snapshot:
        """Return the files of `repo` at a branch, tag or commit; None is its main branch.

        Raises:
            SetupError: it does not exist, cannot be read, or the hub does not answer.
            BrokenOff: a later try may work.
        """
        import httpx2
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.address, token=self.token or False, library_name="llama-endpoints")
        try:
            with self._errors(repo, revision):
                info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_API_TIMEOUT_S)
        except BrokenOff as error:
            if isinstance(error.__cause__, httpx2.ConnectError):
                self._unreachable(error.__cause__)  # nothing has started, so no retries
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise SetupError(f"{self.address} does not answer like a hub. Check HF_ENDPOINT.") from error
        return Snapshot.of(repo, info.sha, (_file(sibling) for sibling in info.siblings or ()))

    @contextmanager
    def open(self, snapshot: Snapshot, name: str, start: int) -> Iterator[Reading]:
        """Open a file's bytes from `start` on.

        Raises:
            SetupError: it cannot be read, or does not exist.
            BrokenOff: the connection failed, or the hub asks to retry later.
        """
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported lazily
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(snapshot.repo, name, revision=snapshot.commit, endpoint=self.address)
        headers = build_hf_headers(token=self.token or False, library_name="llama-endpoints")
        headers["Accept-Encoding"] = "identity"  # ranges and sizes refer to the file itself
        if start:
            headers["Range"] = f"bytes={start}-"
        # The hub redirects to a store; the session drops the token at another host.
        with self._errors(snapshot.repo, snapshot.commit), get_session().stream(
            "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:  # fmt: skip
            if response.is_error:
                response.read()
                hf_raise_for_status(response)
            yield Reading(_start(response), response.iter_raw())

    @contextmanager
    def _errors(self, repo: str, revision: str | None) -> Iterator[None]:
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        try:
            yield
        except OfflineModeIsEnabled as error:
            raise SetupError("HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids downloads. Unset it.") from error
        except HfHubHTTPError as error:
            self._refused(error, repo, revision)
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, HFValidationError) as error:
            raise SetupError(
                f"Invalid hub address {self.address}: HF_ENDPOINT must be an http(s) URL."
            ) from error
        except httpx2.TransportError as error:
            raise BrokenOff(_first_line(error)) from error

    def _unreachable(self, error: Exception) -> NoReturn:
        raise SetupError(
            f"Cannot reach {self.address}: {_first_line(error)}. Check the network and its proxy (HTTPS_PROXY), or set another hub "
            "in HF_ENDPOINT."
        ) from error

    def _refused(self, error: "HfHubHTTPError", repo: str, revision: str | None) -> NoReturn:
        """Raise the hub's error with advice."""
        status = error.response.status_code
        code = error.response.headers.get("X-Error-Code")
        if status in _TRANSIENT:
            raise BrokenOff(f"the hub answered {status}", _retry_after(error.response)) from error
        if code == "GatedRepo":
            sentence = (
                f"{repo} is gated. Accept its licence on {self.address}/{repo}, then {LOG_IN} that has access"
            )
        elif status == 401:
            sentence = (
                f"The hub refused {repo} ({status}): it does not exist, or the token is missing or wrong. "
                f"If it is private or gated, {LOG_IN} that may read it"
            )
        elif status == 403:
            sentence = f"The token may not read {repo} ({status}). Grant it access, or {LOG_IN} that has it"
        elif code == "RevisionNotFound":
            sentence = f"{repo} has no revision {revision}. --revision takes a branch, a tag or a commit"
        elif status == 404:
            sentence = f"{self.address} has no {repo} at revision {revision or 'main'} ({status}). Check HF_ENDPOINT and --revision"
        else:
            sentence = f"The hub refused {repo} ({status}). Check HF_ENDPOINT and the token"
        raise SetupError(f"{sentence}.") from error


@dataclass(frozen=True, slots=True)
class Repository:
    """A hub repository at one commit, as a download source."""

    hub: Hub
    snapshot: Snapshot
    name: str = "the hub"

    def open(self, file: HubFile, start: int) -> AbstractContextManager[Reading]:
        """Open a file's bytes, like `Hub.open`."""
        return self.hub.open(self.snapshot, file.name, start)


def token_of(path: Path | None = None, secret: Callable[[], str] | None = None) -> str | None:
    """Return the token of a file or secret, else HF_TOKEN or that of `hf auth login`, else None. No message quotes it.

    Raises:
        SetupError: the file or secret holds no token.
    """
    from huggingface_hub import constants, get_token

    token: str | None
    if path is not None:
        where, token = str(path), _read(path)
    elif secret is not None:
        where, token = "The secret", secret().strip()
    else:
        where, token = "HF_TOKEN", None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token is not None and not _TOKEN.fullmatch(token):  # httpx would quote an invalid header
        raise SetupError(f"{where} holds no token. A token is one word of letters, digits and signs.")
    return token


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise SetupError(
            f"Cannot read {path} as text. --token-file must be a file with the hub's token."
        ) from None


def quiet() -> None:
    """Switch off the hub library's telemetry. Call before its first import."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _file(sibling: Any) -> HubFile:
    size = sibling.size if isinstance(sibling.size, int) else 0
    if sibling.lfs is not None:
        return HubFile(sibling.rfilename, size, sha256=str(sibling.lfs.sha256))
    return HubFile(sibling.rfilename, size, git_sha1=str(sibling.blob_id))


def _start(response: "httpx2.Response") -> int:
    if response.status_code == 200:
        return 0
    said = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status_code != 206 or said is None:
        raise BrokenOff(f"the hub answered {response.status_code} without a Content-Range")
    return int(said[1])


def _retry_after(response: "httpx2.Response") -> float | None:
    """Return the seconds to wait, from `Retry-After` or the hub's rate limit headers."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    said = response.headers.get("Retry-After", "").strip()
    if said.isdigit():
        return float(said)
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
