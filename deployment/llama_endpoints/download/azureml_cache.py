"""Local cache of models stored in Azure. A model is downloaded once, verified, and appears only when complete.

    CACHE/registries/azureml-meta/models/NAME/versions/3/all/CONTENT/NAME/

CONTENT is a digest of Azure's listing: names, sizes and ETags. A model's version never changes, so a cached one is used
without a request; a datastore's folder is listed each time. `.CONTENT` is an incomplete download.
"""

import hashlib
import os
import shutil
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llama_endpoints.azure import workspace
from llama_endpoints.checkpoints.file_patterns import PICKLES
from llama_endpoints.download import azureml_uri
from llama_endpoints.download.azureml_uri import ModelUri, UriKind
from llama_endpoints.download.progress import download_bar
from llama_endpoints.download.source import BrokenOff, patiently
from llama_endpoints.download.transfer import Download, alone
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llama_endpoints.download.azure_blobs import Blob

CACHE: Final = "LLAMA_AZURE_CACHE"
WEIGHTS: Final = "*.safetensors"


def resolve(name: str, *, weights: bool = True) -> Path:
    """Return the local folder of a model, and download it if needed. Pickles are never downloaded.

    Args:
        name: a path, or an azureml: URI.
        weights: whether the safetensors files are needed.

    Raises:
        SetupError: it cannot be downloaded, or the disk is full.
    """
    if not ModelUri.is_one(name):
        return Path(name)
    uri = ModelUri.parse(name)
    if uri.kind is UriKind.JOB:
        raise SetupError(azureml_uri.refusal(uri))
    if uri.needs_workspace:
        found = workspace.default()
        uri = uri.in_workspace(found.subscription, found.group, found.name)
    return _cached(uri, weights=weights) or _bring(uri, weights=weights)


def cache() -> Path:
    """Return the cache folder: `LLAMA_AZURE_CACHE`, or a folder in the user's cache."""
    given = os.environ.get(CACHE, "").strip()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given).absolute() if given else home / "llama-endpoints" / "azure"


def _cached(uri: ModelUri, *, weights: bool) -> Path | None:
    """Return the cached folder of a model that cannot have changed since."""
    if "version" not in uri.parts:
        return None
    parts = ("all",) if weights else ("all", "small")
    whole = (path for part in parts for path in (cache() / uri.place / part).glob(f"[!.]*/{uri.title}"))
    return next(whole, None)


def _bring(uri: ModelUri, *, weights: bool) -> Path:

    from llama_endpoints.azure.sdk import quiet
    from llama_endpoints.download import azureml_assets
    from llama_endpoints.download.azure_blobs import Blobs

    place = azureml_assets.locate(uri)
    if "label" in uri.parts and place.version:
        uri = uri.of_version(place.version)
        there = _cached(uri, weights=weights)
        if there is not None:
            return there
    blobs = Blobs(place, lambda: azureml_assets.locate(uri))
    with quiet(), download_bar() as bar:
        try:
            listed = patiently(blobs.list, str(uri), tell=bar.tell)
        except BrokenOff as error:
            raise SetupError(f"Azure does not list the files of {uri}: {error}. Try again later.") from error
        files = tuple(blob for blob in listed if _is_wanted(blob.name, weights=weights))
        whole = cache() / uri.place / ("all" if weights else "small") / _content(files)
        if not whole.is_dir():
            bar.expect(sum(file.size for file in files))
            stage = whole.with_name(f".{whole.name}")
            coming = Download(blobs, stage / uri.title, ours=True, progress=bar.progress, tell=bar.tell)
            _fill(coming, files, stage, whole)
            bar.tell(f"{uri} is now in {whole / uri.title}.")
    return whole / uri.title


def _fill(download: Download, files: "tuple[Blob, ...]", stage: Path, whole: Path) -> None:
    """Download `files` to `stage`, and rename it to `whole` when complete."""
    try:
        with alone(stage, "Wait for it"):
            if whole.is_dir():  # another process finished first
                stage.rmdir()
                return
            download.folder.mkdir(exist_ok=True)
            download.check_room(files, f"set {CACHE} to a folder on another disk")
            download.bring(files)
            _keep(stage)
            stage.rename(whole)
            _tidy(whole.parent)
    except OSError as error:
        raise SetupError(
            f"Cannot write {stage}: {error.strerror or error}. Progress is kept: run the same command again to resume."
        ) from error


def _keep(stage: Path) -> None:
    """Flush every folder to disk before the download counts as complete."""
    for path in (stage, *(inner for inner in stage.rglob("*") if inner.is_dir())):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _tidy(folder: Path) -> None:
    """Remove incomplete downloads of older content, unless another process is using them."""
    for stale in folder.glob(".*"):
        with suppress(SetupError), alone(stale, ""):
            shutil.rmtree(stale)


def _is_wanted(name: str, *, weights: bool) -> bool:
    last = name.rpartition("/")[2]
    unwanted = PICKLES if weights else (*PICKLES, WEIGHTS)
    return not any(fnmatchcase(last, pattern) for pattern in unwanted)


def _content(files: "Iterable[Blob]") -> str:
    text = "\n".join(f"{file.etag} {file.size} {file.name}" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
