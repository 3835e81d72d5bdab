"""Package a checkpoint with a merged adapter as an MLflow model, atomically."""

from collections.abc import Callable
from pathlib import Path

from llama_endpoints.checkpoints import logit_shift
from llama_endpoints.checkpoints.adapter import LoraAdapter, read_adapter
from llama_endpoints.checkpoints.inspection import Checkpoint, inspect
from llama_endpoints.checkpoints.merge import Merged, merge
from llama_endpoints.checkpoints.package import Packaged, WeightsMode, check_output, package, staged, writing
from llama_serving.errors import SetupError
from llama_serving.model_files import ARTIFACT, CHECKPOINT


def open_adapter(base: Checkpoint, folder: Path) -> LoraAdapter:
    """Read the adapter in `folder` for a checkpoint.

    Raises:
        SetupError: it cannot be merged exactly.
    """
    if base.variant.quantization is not None:
        raise SetupError(
            f"{base.folder} is quantized ({base.variant.quantization}), and an adapter cannot be added exactly to rounded weights. "
            "Merge it into the unquantized checkpoint, and quantize the result."
        )
    return read_adapter(folder, base.variant.shape)


def package_merged(  # noqa: PLR0913  (the options of a command)
    base: Checkpoint,
    adapter: LoraAdapter,
    output: Path,
    *,
    weights: WeightsMode = WeightsMode.LINK,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[Checkpoint, Packaged, tuple[str, ...]]:
    """Write the MLflow model `output`. If it fails or is interrupted, nothing remains.

    Args:
        base: the checkpoint.
        adapter: the adapter, read for this checkpoint.
        output: folder of the new model.
        weights: whether unchanged files are linked or copied.
        overwrite: whether to replace an existing model.
        progress: called with merged bytes of the base.

    Returns:
        The merged checkpoint in `output`, the packaging result, and sentences on how far the adapter moved the model.

    Raises:
        SetupError: a sum overflows its type, or `output` cannot be written.
    """
    if weights is WeightsMode.REFERENCE:
        raise SetupError(
            "Merged weights cannot be referenced: they exist only in the model. Use --weights link or copy with --adapter."
        )
    with writing(output):
        check_output(output, base.files, overwrite=overwrite)
        with staged(output) as stage:
            merged = merge(base, adapter, stage, link=weights is WeightsMode.LINK, progress=progress)
            shift = logit_shift.measure(base.folder, stage, merged.checkpoint.variant)
            done = package(merged.checkpoint, output, overwrite=overwrite)
    found = inspect(output / "artifacts" / ARTIFACT / CHECKPOINT, merged.checkpoint.variant)
    return found, done, (*_moved(merged), str(shift))


def base_differs(base: Checkpoint, adapter: LoraAdapter) -> str | None:
    """Return a warning if the adapter names another base model; None if not."""
    if adapter.base and adapter.base.count("/") == 1 and adapter.base != base.variant.name:
        return f"the adapter was trained on {adapter.base}, but the checkpoint is {base.variant.name}"
    return None


def _moved(merged: Merged) -> tuple[str, ...]:
    changes = merged.changes
    most = max(changes, key=lambda name: changes[name].relative)
    values = sorted(change.relative for change in changes.values())
    median = values[len(values) // 2]
    text = f"The adapter changes {len(changes)} tensors, by {median:.3%} of their norm in the median"
    return (f"{text} and {changes[most].relative:.3%} at most ({most}).",)
