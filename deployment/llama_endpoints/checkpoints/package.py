"""A checkpoint -> an MLflow model: hard links for the weights, all or nothing."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import llama_serving
from llama_endpoints.checkpoints.inspection import Checkpoint
from llama_serving.contract.json_lines import json_document
from llama_serving.engine.batching.native import build
from llama_serving.errors import SetupError
from llama_serving.model_files import ARTIFACT, CHECKPOINT, RECORD, ModelFiles

PACKAGE: Final = Path(llama_serving.__file__).parent
_CHUNK: Final = 16 * 1024 * 1024
_UNLINKABLE: Final = (
    errno.EXDEV,
    errno.EPERM,
    errno.EMLINK,
    errno.EOPNOTSUPP,
    errno.EACCES,
    errno.ENOSYS,  # what a FUSE file system without links says, such as a mounted blob container
)

Progress = Callable[[int], object]
"""Called with the number of bytes that have been dealt with since the last call."""


class Weights(StrEnum):
    """How the weights come into the model."""

    LINK = "link"  # hard links: no second copy; the checkpoint may be deleted afterwards
    COPY = "copy"
    REFERENCE = "reference"  # only the checkpoint's path is recorded: nothing but this machine can use it


@dataclass(frozen=True, slots=True)
class Packaged:
    """What `package` did.

    Attributes:
        copied: why the weights were copied though links were wanted.
        no_kernels: why there are no compiled kernels for CPUs in it.
    """

    output: Path
    weights: Weights
    copied: str | None = None
    no_kernels: str | None = None


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
    with writing(output):
        check_output(checkpoint, output, overwrite=overwrite)
        _check_reference(checkpoint, weights)
        _check_dtype(checkpoint)
        with staged(output) as stage:
            _save(checkpoint, stage, weights)
            no_kernels = _add_kernels(stage)
            copied = _place_weights(checkpoint, stage, weights, progress)
            _put(stage, output)
    return Packaged(output, Weights.COPY if copied else weights, copied, no_kernels)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Says in one sentence what keeps `output` from being written.

    Raises:
        SetupError: in the place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise SetupError(f"{output} can't be written: {_reason(error)}. Nothing was left behind.") from error


def check_output(checkpoint: Checkpoint, output: Path, *, overwrite: bool) -> None:
    """What exists is replaced only where that is wanted, and only a model that isn't the checkpoint's home.

    Raises:
        SetupError: `output` can't be written to.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise SetupError(f"{output} exists already. Name another --output, or add --overwrite.")
    needed = (checkpoint.folder, *checkpoint.weights, *checkpoint.small)
    if any(path.resolve().is_relative_to(output.resolve()) for path in needed):
        raise SetupError(f"{output} holds the checkpoint itself, which --overwrite would delete. Name another.")
    if not (output / "MLmodel").is_file():
        raise SetupError(f"{output} is no MLflow model, so --overwrite leaves it alone. Name another --output.")


def _check_dtype(checkpoint: Checkpoint) -> None:
    variant = checkpoint.variant
    if variant.quantization is not None and variant.dtype == "float32":
        raise SetupError(
            f"{checkpoint.folder} is quantized ({variant.quantization}), and vLLM computes such models in bfloat16 or float16, "
            "not float32. Give one of them as --dtype."
        )


def _check_reference(checkpoint: Checkpoint, weights: Weights) -> None:
    if weights is Weights.REFERENCE and checkpoint.config is not None:
        raise SetupError(
            f"{checkpoint.folder} says in a file of its own how it is quantized, and vLLM looks for it in config.json alone, "
            "which a reference can't change. Use --weights link or copy."
        )


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A folder beside `output`, on the same file system, that is gone afterwards whatever happens."""
    parent = output.absolute().parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=parent))
        try:
            yield folder / "model"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        with suppress(OSError):  # not empty: the model is in it
            for empty in made:
                empty.rmdir()


def _put(stage: Path, output: Path) -> None:
    if not output.exists():
        stage.rename(output)
        return
    old = stage.parent / "old"
    try:
        output.rename(old)
        stage.rename(output)
    except BaseException:  # a stop from outside too: what was there before goes back
        if old.exists() and not output.exists():
            old.rename(output)
        raise


def _reason(error: OSError) -> str:
    """Why, without the paths: they are of a folder that is gone by now."""
    if error.strerror:
        return error.strerror
    first = re.search(r"\[Errno \d+\] ([^:]+)", str(error))  # shutil.Error lists all files of a tree
    return first[1] if first else str(error)


def _save(checkpoint: Checkpoint, stage: Path, weights: Weights) -> None:
    """Everything but the weights; MLflow copies artifacts, so it never sees those."""
    from llama_serving.hosts.mlflow_pyfunc import save_model

    artifact = stage.parent / ARTIFACT
    artifact.mkdir()
    path = CHECKPOINT
    if weights is Weights.REFERENCE:
        path = str(checkpoint.folder.resolve())
    else:
        (artifact / CHECKPOINT).mkdir()
        for file in checkpoint.small:
            shutil.copyfile(file, artifact / CHECKPOINT / file.name)
        if checkpoint.config is not None:
            text = json_document(checkpoint.config, indent=2)
            (artifact / CHECKPOINT / "config.json").write_text(text, encoding="utf-8")
    record = ModelFiles(checkpoint.folder, checkpoint.variant).record(path)
    if checkpoint.merged is not None:
        record["merged"] = dict(checkpoint.merged)
    (artifact / RECORD).write_text(json_document(record, indent=1), encoding="utf-8")
    metadata = {"variant": checkpoint.variant.name, "dtype": checkpoint.variant.dtype}
    if checkpoint.variant.quantization is not None:
        metadata["quantization"] = str(checkpoint.variant.quantization)
    try:
        save_model(stage, artifact=artifact, metadata=metadata, size=checkpoint.weight_bytes)
    except OSError:
        raise
    except Exception as error:  # MLflow wraps what it stumbles over
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise cause from error
        raise SetupError(f"MLflow could not write the model: {error}") from error


def _add_kernels(stage: Path) -> str | None:
    """The code in the model brings its compiled library along; why not, where it can't."""
    try:
        library = build.found_or_made()
    except build.BuildError as error:
        return str(error)
    target = stage / "code" / "llama_serving" / build.HERE.relative_to(PACKAGE) / library.name
    if not target.exists():
        shutil.copyfile(library, target)
    return None


def _place_weights(checkpoint: Checkpoint, stage: Path, weights: Weights, progress: Progress) -> str | None:
    if weights is Weights.REFERENCE:
        progress(checkpoint.weight_bytes)
        return None
    target = stage / "artifacts" / ARTIFACT / CHECKPOINT
    if weights is Weights.COPY:
        _check_room(checkpoint, target)
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
            _check_room(checkpoint, target, f" (a link is not possible: {copied})")
            _copy(file, target / file.name, progress)
    return copied


def _check_room(checkpoint: Checkpoint, target: Path, why: str = "") -> None:
    """Known before hours of copying, not after."""
    free = shutil.disk_usage(target).free
    if free < checkpoint.weight_bytes:
        raise OSError(
            errno.ENOSPC,
            f"a copy of the weights{why} needs {checkpoint.weight_bytes:,} bytes where {free:,} are free "
            "(--weights reference needs none)",
        )


def _copy(source: Path, target: Path, progress: Progress) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            progress(len(chunk))
        writer.flush()
        os.fsync(writer.fileno())
