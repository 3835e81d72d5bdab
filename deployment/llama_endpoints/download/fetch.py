"""Download a catalog model from a hub: the files that serving needs, at one commit, every byte verified."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llama_endpoints.checkpoints.inspection import Checkpoint, adapt, inspect, read_config, shards_of
from llama_endpoints.download.hub import Hub
from llama_endpoints.download.hub_snapshot import INDEX, HubFile, Record, Snapshot
from llama_endpoints.download.source import PAUSES_S, BrokenOff, Tell, patiently
from llama_endpoints.download.transfer import Download, alone
from llama_serving.catalog import ModelVariant
from llama_serving.errors import SetupError

Expect = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A folder with a complete model; `downloaded` is the number of bytes downloaded by this run."""

    checkpoint: Checkpoint
    record: Record
    downloaded: int


def look_up(
    hub: Hub,
    repo: str,
    revision: str | None = None,
    *,
    tell: Tell = lambda _: None,
    pauses: Sequence[float] = PAUSES_S,
) -> Snapshot:
    """Return the files of `repo` at a branch, tag or commit; None is its main branch.

    Raises:
        SetupError: it does not exist, or the hub does not answer.
    """
    try:
        return patiently(lambda: hub.snapshot(repo, revision), repo, tell=tell, pauses=pauses)
    except BrokenOff as error:
        raise SetupError(
            f"{hub.address} does not list the files of {repo}: {error}. Try again later."
        ) from error


def fetch(
    download: Download,
    snapshot: Snapshot,
    variant: ModelVariant,
    *,
    overwrite: bool = False,
    expect: Expect = lambda _: None,
) -> Fetched:
    """Download missing files and verify everything. An interrupted call is resumed by the next one.

    Args:
        download: source and folder; `fetched.json` in the folder records what it holds.
        snapshot: the files.
        variant: the catalog's row of the same model.
        overwrite: replace files of another commit or repository.
        expect: called with additional bytes to download or verify.

    Raises:
        SetupError: it cannot be downloaded, the disk is full, or it is not the model that the catalog describes.
    """
    folder, small = download.folder, snapshot.small()
    try:
        with alone(folder, "Wait for it, or use another --output"):
            ours = _claim(folder, snapshot, overwrite=overwrite)
            Record(snapshot.repo, snapshot.commit, small).write(folder, whole=False)
            files, downloaded = _bring(
                replace(download, ours=ours or overwrite), snapshot, small, variant, expect
            )
            found = inspect(folder, variant)
            record = Record(snapshot.repo, snapshot.commit, files)
            record.write(folder, whole=True)
    except OSError as error:
        raise SetupError(
            f"Cannot write {folder}: {error.strerror or error}. Progress is kept: run the same command again "
            "to resume."
        ) from error
    return Fetched(found, record, downloaded)


def _bring(
    download: Download, snapshot: Snapshot, small: tuple[HubFile, ...], variant: ModelVariant, expect: Expect
) -> tuple[tuple[HubFile, ...], int]:
    """Download the small files first: they show whether it is the right model, and which weights belong to it."""
    folder = download.folder
    expect(sum(file.size for file in small))
    downloaded = download.bring(small)
    adapt(variant, read_config(folder), folder)
    indexed = any(file.name == INDEX for file in small)
    weights = snapshot.weights(shards_of(folder / INDEX) if indexed else None)
    Record(snapshot.repo, snapshot.commit, (*small, *weights)).write(folder, whole=False)
    download.check_room(weights, "use an --output on another disk")
    expect(sum(file.size for file in weights))
    downloaded += download.bring(weights)
    return (*small, *weights), downloaded


def _claim(folder: Path, snapshot: Snapshot, *, overwrite: bool) -> bool:
    """Return whether the folder's files belong to this commit.

    With `overwrite`, files of another commit are removed, so that no stale file remains.
    """
    record = Record.read(folder)
    if record is not None and (record.repo, record.commit) != (snapshot.repo, snapshot.commit):
        if not overwrite:
            same = (
                f", or resume that commit with --revision {record.commit}"
                if record.repo == snapshot.repo
                else ""
            )
            raise SetupError(
                f"{folder} holds {record.repo} at {record.commit[:12]}, not {snapshot.repo} at "
                f"{snapshot.commit[:12]}. Use another --output, add --overwrite to replace it{same}."
            )
        for file in record.files:
            (folder / file.part).unlink(missing_ok=True)
            if snapshot.files.get(file.name) != file:
                (folder / file.name).unlink(missing_ok=True)
    foreign = sorted(
        path.name
        for pattern in ("*.safetensors", INDEX)
        for path in folder.glob(pattern)
        if path.name not in snapshot.files
    )
    if foreign:
        raise SetupError(
            f"{folder} also has {', '.join(foreign[:3])}, which {snapshot.repo} at {snapshot.commit[:12]} does not. "
            "Remove these files, or use another --output."
        )
    return record is not None
