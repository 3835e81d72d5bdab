"""A model that Azure names, in a folder of this machine: downloaded once, verified, and only then there.

    CACHE/registries/azureml-meta/models/NAME/versions/3/all/CONTENT/NAME/

CONTENT is a digest of what Azure lists: names, sizes and ETags. A model's version never changes, so what is there of it is taken
without a question; a datastore's folder is listed each time. `.CONTENT` is what comes in, until it is whole.
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
from llama_endpoints.download.azureml_uri import Kind, ModelUri
from llama_endpoints.download.progress import download_bar
from llama_endpoints.download.source import BrokenOff, patiently
from llama_endpoints.download.transfer import Download, alone
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llama_endpoints.download.azure_blobs import Blob

CACHE: Final = "LLAMA_AZURE_CACHE"
WEIGHTS: Final = "*.safetensors"


def here(name: str, *, weights: bool = True) -> Path:
    """The folder that `name` is, or that it has been downloaded into. Pickles are left where they are.

    Args:
        name: a path, or one of Azure's names of a model.
        weights: whether the safetensors files are needed as well.

    Raises:
        SetupError: it can't be had, or there is no room.
    """
    if not ModelUri.is_one(name):
        return Path(name)
    uri = ModelUri.parse(name)
    if uri.kind is Kind.JOB:
        raise SetupError(azureml_uri.refusal(uri))
    if uri.needs_workspace:
        found = workspace.default()
        uri = uri.in_workspace(found.subscription, found.group, found.name)
    return _there(uri, weights=weights) or _bring(uri, weights=weights)


def cache() -> Path:
    """Where all of it lies: `LLAMA_AZURE_CACHE`, by default a folder of the user's cache."""
    given = os.environ.get(CACHE, "").strip()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given).absolute() if given else home / "llama-endpoints" / "azure"


def _there(uri: ModelUri, *, weights: bool) -> Path | None:
    """What can't have changed since."""
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
        there = _there(uri, weights=weights)
        if there is not None:
            return there
    blobs = Blobs(place, lambda: azureml_assets.locate(uri))
    with quiet(), download_bar() as bar:
        try:
            listed = patiently(blobs.list, str(uri), tell=bar.tell)
        except BrokenOff as error:
            raise SetupError(f"Azure does not say what is in {uri}: {error}. Try again later.") from error
        files = tuple(blob for blob in listed if _is_wanted(blob.name, weights=weights))
        whole = cache() / uri.place / ("all" if weights else "small") / _content(files)
        if not whole.is_dir():
            bar.expect(sum(file.size for file in files))
            stage = whole.with_name(f".{whole.name}")
            coming = Download(blobs, stage / uri.title, ours=True, progress=bar.progress, tell=bar.tell)
            _fill(coming, files, stage, whole)
            bar.tell(f"{uri} is in {whole / uri.title} now.")
    return whole / uri.title


def _fill(download: Download, files: "tuple[Blob, ...]", stage: Path, whole: Path) -> None:
    """`whole` is there, with all of `files`; or it is not."""
    try:
        with alone(stage, "Wait for it"):
            if whole.is_dir():  # another process was faster
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
            f"{stage} can't be written: {error.strerror or error}. What is there is kept: run the same command again to go on."
        ) from error


def _keep(stage: Path) -> None:
    """Every folder's names are on the disk before it is called whole."""
    for path in (stage, *(inner for inner in stage.rglob("*") if inner.is_dir())):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _tidy(folder: Path) -> None:
    """Nothing stays of what was changed in Azure while it came, unless another process is at it."""
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
