"""A checkpoint -> an MLflow model: hard links for the weights, all or nothing."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from deployment.checkpoint import Checkpoint
from llama_serving.errors import SetupError
from llama_serving.model_files import ARTIFACT, CHECKPOINT, RECORD, ModelFiles

_CHUNK: Final = 16 * 1024 * 1024
_UNLINKABLE: Final = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES)

Progress = Callable[[int], object]
"""Called with the number of bytes that have been dealt with since the last call."""


class Weights(StrEnum):
    """How the weights come into the model."""

    LINK = "link"  # hard links: no second copy; the checkpoint may be deleted afterwards
    COPY = "copy"
    REFERENCE = "reference"  # only the checkpoint's path is recorded: nothing but this machine can use it


@dataclass(frozen=True, slots=True)
class Packaged:
    """What `package` did; `copied` is why the weights were copied though links were wanted."""

    output: Path
    weights: Weights
    copied: str | None = None


def package(
    checkpoint: Checkpoint,
    output: Path,
    *,
    weights: Weights = Weights.LINK,
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> Packaged:
    """Writes the MLflow model `output`; on any failure nothing of it is left.

    Raises:
        SetupError: `output` exists, the disk is full, or something can't be written.
    """
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise SetupError(f"{output} exists already. Name another --output, or add --overwrite.")
    try:
        with _staged(output) as stage:
            _save(checkpoint, stage, weights)
            copied = _place_weights(checkpoint, stage, weights, progress)
            _put(stage, output)
    except OSError as error:
        raise SetupError(
            f"{output} can't be written: {error.strerror or error}. Nothing was left behind."
        ) from error
    return Packaged(output, Weights.COPY if copied else weights, copied)


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A folder beside `output`, on the same file system, that is gone afterwards whatever happens."""
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.absolute().parent))
    try:
        yield folder / "model"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(stage: Path, output: Path) -> None:
    if not output.exists():
        stage.rename(output)
        return
    old = stage.parent / "old"
    output.rename(old)
    try:
        stage.rename(output)
    except OSError:
        old.rename(output)
        raise


def _save(checkpoint: Checkpoint, stage: Path, weights: Weights) -> None:
    """Everything but the weights; MLflow copies artifacts, so it never sees those."""
    from mlflow.exceptions import MlflowException

    from llama_serving.pyfunc import save_model

    artifact = stage.parent / ARTIFACT
    artifact.mkdir()
    path = CHECKPOINT
    if weights is Weights.REFERENCE:
        path = str(checkpoint.folder.resolve())
    else:
        (artifact / CHECKPOINT).mkdir()
        for file in checkpoint.small:
            shutil.copyfile(file, artifact / CHECKPOINT / file.name)
    record = ModelFiles(checkpoint.folder, checkpoint.variant).record(path)
    (artifact / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    metadata = {"variant": checkpoint.variant.name, "dtype": checkpoint.variant.dtype}
    try:
        save_model(stage, artifact=artifact, metadata=metadata, size=checkpoint.weight_bytes)
    except MlflowException as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise cause from error
        raise SetupError(f"MLflow could not write the model: {error.message}") from error


def _place_weights(checkpoint: Checkpoint, stage: Path, weights: Weights, progress: Progress) -> str | None:
    if weights is Weights.REFERENCE:
        progress(checkpoint.weight_bytes)
        return None
    target = stage / "artifacts" / ARTIFACT / CHECKPOINT
    copied = None
    for file in checkpoint.weights:
        if weights is Weights.COPY or copied:
            _copy(file, target / file.name, progress)
            continue
        try:
            os.link(file.resolve(), target / file.name)
            progress(file.stat().st_size)
        except OSError as error:
            if error.errno not in _UNLINKABLE:
                raise
            copied = str(error.strerror)
            _refuse_full_disk(checkpoint, target)
            _copy(file, target / file.name, progress)
    return copied


def _refuse_full_disk(checkpoint: Checkpoint, target: Path) -> None:
    free = shutil.disk_usage(target).free
    if free < checkpoint.weight_bytes:
        raise OSError(
            errno.ENOSPC,
            f"the weights can't be linked to this file system, and a copy needs {checkpoint.weight_bytes:,} bytes "
            f"where {free:,} are free (--weights reference needs none)",
        )


def _copy(source: Path, target: Path, progress: Progress) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            progress(len(chunk))
        writer.flush()
        os.fsync(writer.fileno())
