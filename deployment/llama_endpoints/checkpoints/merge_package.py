"""A checkpoint and an adapter -> an MLflow model with the merged weights, all or nothing."""

from collections.abc import Callable
from pathlib import Path

from llama_endpoints.checkpoints import logit_shift
from llama_endpoints.checkpoints.adapter import Adapter, read_adapter
from llama_endpoints.checkpoints.inspection import Checkpoint, inspect
from llama_endpoints.checkpoints.merge import Merged, merge
from llama_endpoints.checkpoints.package import Packaged, Weights, check_output, package, staged, writing
from llama_serving.errors import SetupError
from llama_serving.model_files import ARTIFACT, CHECKPOINT


def open_adapter(base: Checkpoint, folder: Path) -> Adapter:
    """The adapter in `folder`, for this checkpoint.

    Raises:
        SetupError: it can't be merged into it exactly.
    """
    if base.variant.quantization is not None:
        raise SetupError(
            f"{base.folder} is quantized ({base.variant.quantization}), and an adapter can't be added to rounded weights "
            "exactly. Merge it into the unquantized checkpoint, and quantize that."
        )
    return read_adapter(folder, base.variant.shape)


def package_merged(  # noqa: PLR0913  (the options of a command)
    base: Checkpoint,
    adapter: Adapter,
    output: Path,
    *,
    weights: Weights = Weights.LINK,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[Checkpoint, Packaged, tuple[str, ...]]:
    """Writes the MLflow model `output`; on any failure, and when stopped, nothing of it is left.

    Args:
        base: the checkpoint.
        adapter: opened for it.
        output: becomes the model.
        weights: files that the adapter leaves alone are linked or copied.
        overwrite: replace a model that is there.
        progress: told bytes of the base that have been merged.

    Returns:
        The merged checkpoint in `output`, what packaging did, and sentences on how far the
        adapter moved the model.

    Raises:
        SetupError: a sum is too large for its type, or `output` can't be written.
    """
    if weights is Weights.REFERENCE:
        raise SetupError(
            "Merged weights have no other place than the model. Use --weights link or copy with --adapter."
        )
    with writing(output):
        check_output(base, output, overwrite=overwrite)
        with staged(output) as stage:
            merged = merge(base, adapter, stage, link=weights is Weights.LINK, progress=progress)
            shift = logit_shift.measure(base.folder, stage, merged.checkpoint.variant)
            done = package(merged.checkpoint, output, overwrite=overwrite)
    found = inspect(output / "artifacts" / ARTIFACT / CHECKPOINT, merged.checkpoint.variant)
    return found, done, (*_moved(merged), str(shift))


def base_differs(base: Checkpoint, adapter: Adapter) -> str | None:
    """A warning where the adapter names another model of the hub than the checkpoint is; None where not."""
    if adapter.base and adapter.base.count("/") == 1 and adapter.base != base.variant.name:
        return (
            f"the adapter says that it was trained on {adapter.base}, and the checkpoint is {base.variant.name}"
        )
    return None


def _moved(merged: Merged) -> tuple[str, ...]:
    changes = merged.changes
    most = max(changes, key=lambda name: changes[name].relative)
    values = sorted(change.relative for change in changes.values())
    median = values[len(values) // 2]
    text = f"The adapter changes {len(changes)} tensors, by {median:.3%} of their norm in the median"
    return (f"{text} and {changes[most].relative:.3%} at most ({most}).",)
