"""A model hub, by huggingface_hub. The only file that imports it.

Its session, errors and token are used, its downloads are not: 2.x writes a file under a random name, which a killed process
leaves behind and no later one goes on with, and its way over Xet keeps no more. Plain HTTP has ranges, for every file.
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
    """A hub, and who asks.

    Attributes:
        token: None asks as nobody.
        endpoint: its address; None is HF_ENDPOINT's, or the public one.
    """

    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None

    @property
    def address(self) -> str:
        """Where it is."""
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    def snapshot(self, repo: str, revision: str | None) -> Snapshot:
        """The files of `repo` at a branch, tag or commit; None is its main branch.

        Raises:
            SetupError: there is no such thing, it may not be read, or nobody answers.
            BrokenOff: it may answer later.
        """
        import httpx2
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.address, token=self.token or False, library_name="llama-endpoints")
        try:
            with self._errors(repo, revision):
                info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_API_TIMEOUT_S)
        except BrokenOff as error:
            if isinstance(error.__cause__, httpx2.ConnectError):
                self._unreachable(error.__cause__)  # nothing has begun, so it is said at once
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise SetupError(f"{self.address} does not answer as a hub does. Check HF_ENDPOINT.") from error
        return Snapshot.of(repo, info.sha, (_file(sibling) for sibling in info.siblings or ()))

    @contextmanager
    def open(self, snapshot: Snapshot, name: str, start: int) -> Iterator[Reading]:
        """One file's bytes, from `start` on.

        Raises:
            SetupError: it may not be read, or is not there.
            BrokenOff: the connection failed, now or in the middle, or the hub asks for patience.
        """
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # (exported lazily)
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(snapshot.repo, name, revision=snapshot.commit, endpoint=self.address)
        headers = build_hf_headers(token=self.token or False, library_name="llama-endpoints")
        headers["Accept-Encoding"] = "identity"  # ranges and sizes are of the file itself
        if start:
            headers["Range"] = f"bytes={start}-"
        # (The hub sends a file's reader to a store; the session leaves the token behind at another host.)
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
            raise SetupError(
                "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids to reach a hub. Unset it."
            ) from error
        except HfHubHTTPError as error:
            self._refused(error, repo, revision)
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, HFValidationError) as error:
            raise SetupError(
                f"{self.address} is no hub's address. HF_ENDPOINT must be an http(s) URL."
            ) from error
        except httpx2.TransportError as error:
            raise BrokenOff(_said(error)) from error

    def _unreachable(self, error: Exception) -> NoReturn:
        raise SetupError(
            f"{self.address} can't be reached: {_said(error)}. Check the network and its proxy (HTTPS_PROXY), or name "
            "another hub in HF_ENDPOINT."
        ) from error

    def _refused(self, error: "HfHubHTTPError", repo: str, revision: str | None) -> NoReturn:
        """What the hub has said, and what can be done about it."""
        status = error.response.status_code
        code = error.response.headers.get("X-Error-Code")
        if status in _TRANSIENT:
            raise BrokenOff(f"the hub says {status}", _retry_after(error.response)) from error
        if code == "GatedRepo":
            sentence = f"{repo} is gated. Accept its licence on {self.address}/{repo}, and then {LOG_IN} that has access"
        elif status == 401:
            sentence = (
                f"The hub refuses {repo} ({status}): there is none of that name, or the token is missing or wrong. "
                f"If it is private or gated, {LOG_IN} that may read it"
            )
        elif status == 403:
            sentence = (
                f"The token may not read {repo} ({status}). Give it the right to, or {LOG_IN} that has it"
            )
        elif code == "RevisionNotFound":
            sentence = f"{repo} has no revision {revision}. --revision takes a branch, a tag or a commit of it"
        elif status == 404:
            sentence = f"{self.address} has no such thing ({status}): {repo}, revision {revision or 'main'}. Check HF_ENDPOINT and --revision"
        else:
            sentence = f"The hub refuses {repo} ({status}). Check HF_ENDPOINT and the token"
        raise SetupError(f"{sentence}.") from error


@dataclass(frozen=True, slots=True)
class Repository:
    """The files of a hub's repository at one commit, to be downloaded."""

    hub: Hub
    snapshot: Snapshot
    name: str = "the hub"

    def open(self, file: HubFile, start: int) -> AbstractContextManager[Reading]:
        """One file's bytes, as `Hub.open`."""
        return self.hub.open(self.snapshot, file.name, start)


def token_of(path: Path | None = None, secret: Callable[[], str] | None = None) -> str | None:
    """The token in a file or a secret, else HF_TOKEN's or that of `hf auth login`, else None. No message ever quotes it.

    Raises:
        SetupError: there is a file or a secret, and no token in it.
    """
    from huggingface_hub import constants, get_token

    token: str | None
    if path is not None:
        where, token = str(path), _read(path)
    elif secret is not None:
        where, token = "The secret", secret().strip()
    else:
        where, token = "HF_TOKEN", None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token is not None and not _TOKEN.fullmatch(token):  # (httpx would quote the header that it can't send)
        raise SetupError(f"{where} holds no token: one word of letters, digits and signs is needed.")
    return token


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise SetupError(
            f"{path} can't be read as text. --token-file names a file with the hub's token."
        ) from None


def quiet() -> None:
    """Nothing is reported to the hub but what is asked of it. Before the first import of its library."""
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
        raise BrokenOff(f"the hub says {response.status_code} without the range that it sends")
    return int(said[1])


def _retry_after(response: "httpx2.Response") -> float | None:
    """Seconds, by `Retry-After` or by the hub's own rate limit headers."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    said = response.headers.get("Retry-After", "").strip()
    if said.isdigit():
        return float(said)
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def _said(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
