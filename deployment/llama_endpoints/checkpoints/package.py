"""Package a checkpoint as an MLflow model, with hard-linked weights, atomically."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import llama_serving
from llama_endpoints.checkpoints.inspection import Checkpoint
from llama_serving import version as builds
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
    errno.ENOSYS,  # FUSE file systems without links, such as a mounted blob container
)

Progress = Callable[[int], object]
"""Called with the number of bytes processed since the last call."""


class WeightsMode(StrEnum):
    """How the weights get into the model."""

    LINK = "link"  # hard links: no second copy; the checkpoint may be deleted afterwards
    COPY = "copy"
    REFERENCE = "reference"  # only the checkpoint's path is recorded: the model works on this machine only


@dataclass(frozen=True, slots=True)
class Packaged:
    """The result of `package`.

    Attributes:
        copied: why the weights were copied instead of linked.
        no_kernels: why the model lacks compiled CPU kernels.
    """

    output: Path
    weights: WeightsMode
    copied: str | None = None
    no_kernels: str | None = None


def package(
    checkpoint: Checkpoint,
    output: Path,
    *,
    weights: WeightsMode = WeightsMode.LINK,
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> Packaged:
    """Write the MLflow model `output`. If it fails, nothing remains.

    Raises:
        SetupError: `output` exists, the disk is full, or a file cannot be written.
    """
    with writing(output):
        check_output(output, checkpoint.files, overwrite=overwrite)
        _check_reference(checkpoint, weights)
        _check_dtype(checkpoint)
        with staged(output) as stage:
            _save(checkpoint, stage, weights)
            builds.write_record(stage / "code" / "llama_serving")
            no_kernels = _add_kernels(stage)
            copied = _place_weights(checkpoint, stage, weights, progress)
            _put(stage, output)
    return Packaged(output, WeightsMode.COPY if copied else weights, copied, no_kernels)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turn errors while writing `output` into one sentence.

    Raises:
        SetupError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise SetupError(f"Cannot write {output}: {_reason(error)}. Nothing was left behind.") from error


def check_output(output: Path, needed: Iterable[Path], *, overwrite: bool) -> None:
    """Check that `output` is free, or is a model that may be replaced and does not contain the checkpoint.

    Args:
        output: folder of the new model.
        needed: files and folders of the checkpoint.
        overwrite: whether a model may be replaced.

    Raises:
        SetupError: `output` cannot be written to.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise SetupError(f"{output} already exists. Use another --output, or add --overwrite.")
    if any(path.resolve().is_relative_to(output.resolve()) for path in needed):
        raise SetupError(
            f"{output} holds the checkpoint itself, which --overwrite would delete. Use another --output."
        )
    if not (output / "MLmodel").is_file():
        raise SetupError(
            f"{output} is not an MLflow model, so --overwrite does not replace it. Use another --output."
        )


def _check_dtype(checkpoint: Checkpoint) -> None:
    variant = checkpoint.variant
    if variant.quantization is not None and variant.dtype == "float32":
        raise SetupError(
            f"{checkpoint.folder} is quantized ({variant.quantization}); vLLM runs such models in bfloat16 or float16, "
            "not float32. Pass one of these as --dtype."
        )


def _check_reference(checkpoint: Checkpoint, weights: WeightsMode) -> None:
    if weights is WeightsMode.REFERENCE and checkpoint.config is not None:
        raise SetupError(
            f"The quantization of {checkpoint.folder} is in a separate file, but vLLM reads only config.json, "
            "which a reference cannot change. Use --weights link or copy."
        )


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Create a temporary folder beside `output`, on the same file system, and remove it afterwards."""
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
        with suppress(OSError):  # not empty: it holds the model
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
    except BaseException:  # also on interruption: restore what was there
        if old.exists() and not output.exists():
            old.rename(output)
        raise


def _reason(error: OSError) -> str:
    """Return the cause without paths, which are of a temporary folder."""
    if error.strerror:
        return error.strerror
    first = re.search(r"\[Errno \d+\] ([^:]+)", str(error))  # shutil.Error lists all files
    return first[1] if first else str(error)


def _save(checkpoint: Checkpoint, stage: Path, weights: WeightsMode) -> None:
    """Save everything except the weights, so that MLflow does not copy them."""
    from llama_serving.hosts.mlflow_pyfunc import save_model

    artifact = stage.parent / ARTIFACT
    artifact.mkdir()
    path = CHECKPOINT
    if weights is WeightsMode.REFERENCE:
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
    if checkpoint.gguf is not None:
        record["gguf"] = dict(checkpoint.gguf)
    (artifact / RECORD).write_text(json_document(record, indent=1), encoding="utf-8")
    metadata = {"variant": checkpoint.variant.name, "dtype": checkpoint.variant.dtype}
    if checkpoint.variant.quantization is not None:
        metadata["quantization"] = str(checkpoint.variant.quantization)
    try:
        save_model(stage, artifact=artifact, metadata=metadata, size=checkpoint.weight_bytes)
    except OSError:
        raise
    except Exception as error:  # MLflow raises arbitrary errors
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise cause from error
        raise SetupError(f"MLflow could not write the model: {error}") from error


def _add_kernels(stage: Path) -> str | None:
    """Compile the kernels of all instruction sets into the model's code, instead of any others. Return why some are missing."""
    made, failed = build.found_or_made_all()
    folder = stage / "code" / "llama_serving" / build.HERE.relative_to(PACKAGE)
    for stale in {path.name for path in folder.glob("kernels-*.so")} - {library.name for library in made}:
        (folder / stale).unlink()
    for library in made:
        if not (folder / library.name).exists():
            shutil.copyfile(library, folder / library.name)
    return "; ".join(failed) or None


def _place_weights(checkpoint: Checkpoint, stage: Path, weights: WeightsMode, progress: Progress) -> str | None:
    if weights is WeightsMode.REFERENCE:
        progress(checkpoint.weight_bytes)
        return None
    target = stage / "artifacts" / ARTIFACT / CHECKPOINT
    if weights is WeightsMode.COPY:
        _check_room(checkpoint, target)
    copied = None
    for file in checkpoint.weights:
        if weights is WeightsMode.COPY or copied:
            _copy(file, target / file.name, progress)
            continue
        try:
            os.link(file.resolve(), target / file.name)
            progress(file.stat().st_size)
        except OSError as error:
            if error.errno not in _UNLINKABLE:
                raise
            copied = str(error.strerror)
            _check_room(checkpoint, target, f" (cannot link: {copied})")
            _copy(file, target / file.name, progress)
    return copied


def _check_room(checkpoint: Checkpoint, target: Path, why: str = "") -> None:
    """Check the free disk space before copying."""
    free = shutil.disk_usage(target).free
    if free < checkpoint.weight_bytes:
        raise OSError(
            errno.ENOSPC,
            f"a copy of the weights{why} needs {checkpoint.weight_bytes:,} bytes, but {free:,} are free "
            "(--weights reference needs none)",
        )


def _copy(source: Path, target: Path, progress: Progress) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            progress(len(chunk))
        writer.flush()
        os.fsync(writer.fileno())
