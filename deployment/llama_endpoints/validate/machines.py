"""The machine of a deployment, and whether the model fits on it."""

from dataclasses import replace
from typing import Final

from llama_endpoints.azure.limits import NODE_SIZE
from llama_endpoints.planning import sizing, skus
from llama_endpoints.planning.sizing import Fit, Precision, Runner, Workload
from llama_endpoints.planning.skus import Cloud, Sku
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.kinds import SpecKind
from llama_endpoints.validate.references import cluster
from llama_endpoints.validate.serving import Serving
from llama_endpoints.validate.spec_files import SpecFile, SpecTree

_PRECISION: Final = {"bfloat16": Precision.BF16, "float16": Precision.FP16}
GPUS: Final = "nvidia.com/gpu"
"""The resource names that Kubernetes uses."""


def sizes() -> dict[str, Sku]:
    """Return Azure's machines by name."""
    return {sku.name: sku for sku in skus.SKUS.values() if sku.cloud is Cloud.AZURE}


def instance_type(spec: SpecFile, tree: SpecTree) -> SpecFile | None:
    """Return the file of a Kubernetes deployment's instance type, if there is one."""
    return tree.named(spec.text("instance_type"), SpecKind.INSTANCE_TYPE)


def machine_of(spec: SpecFile, tree: SpecTree) -> Sku | None:
    """Return the machine of a deployment, with the GPUs it gets, or of a cluster's file."""
    if spec.kind is SpecKind.BATCH_DEPLOYMENT:
        compute = cluster(spec, tree)
        return machine_of(compute, tree) if compute else None
    if spec.kind is SpecKind.KUBERNETES_DEPLOYMENT:
        made = instance_type(spec, tree)
        return _node(made) if made else None
    return skus.azure_size(spec.text(*size_place(spec)))


def _node(made: SpecFile) -> Sku | None:
    sku = skus.azure_size(made.text("spec", "nodeSelector", NODE_SIZE))
    gpus = made.number("spec", "resources", "limits", GPUS, default=0)
    return replace(sku, gpus=min(sku.gpus, gpus)) if sku and gpus > 0 else None


def size_place(spec: SpecFile) -> Place:
    """Return the field of a deployment or cluster that names its size."""
    places = {SpecKind.COMPUTE: "size", SpecKind.BATCH_DEPLOYMENT: "compute"}
    return (places.get(spec.kind, "instance_type"),)


def context_of(serving: Serving) -> int:
    """Return the context in tokens: as set, or as the model was trained."""
    trained = serving.variant.trained_positions.value if serving.variant else 0
    return serving.settings.context or trained


def concurrency_of(serving: Serving) -> int:
    """Return the number of sequences computed at a time."""
    return 1 if _runner(serving) is Runner.PIPELINE else serving.settings.max_num_seqs


_RUNNERS: Final = {"pipeline": Runner.PIPELINE, "vllm": Runner.VLLM}


def _runner(serving: Serving) -> Runner | None:
    return _RUNNERS.get(serving.engine)


def fit_of(spec: SpecFile, sku: Sku, serving: Serving, usual: int = 1) -> Fit | None:
    """Return how a deployment's model fits on a machine; None if the model is unknown or missing. 32 bits are planned as 16.

    Args:
        spec: the deployment.
        sku: the machine.
        serving: how it is served.
        usual: usual tokens of vLLM's sequences, one of which may have the full length.
    """
    if serving.variant is None or serving.is_elsewhere:
        return None
    workload = Workload(context_of(serving), concurrency_of(serving), usual if serving.has_vllm else None)
    own_disk = spec.kind is not SpecKind.KUBERNETES_DEPLOYMENT
    precision = serving.precision or _PRECISION.get(_dtype(serving), Precision.FP16)
    options = serving.options if serving.has_vllm else sizing.USUAL_OPTIONS
    return sizing.fit(
        serving.variant,
        workload,
        precision,
        _shared(sku, serving),
        _runner(serving),
        options=options,
        own_disk=own_disk,
    )


def _shared(sku: Sku, serving: Serving) -> Sku:
    """Return the machine with vLLM's share of its memory, if that differs from what is planned with."""
    share = serving.settings.vllm_gpu_share
    if not serving.has_vllm or share == sizing.USABLE:
        return sku
    return replace(sku, gpu=replace(sku.gpu, memory_mib=round(sku.gpu.memory_mib * share / sizing.USABLE)))


def _dtype(serving: Serving) -> str:
    given = serving.settings.dtype
    return serving.variant.dtype if given == "auto" and serving.variant else given


def reasons_against(spec: SpecFile, sku: Sku, serving: Serving) -> tuple[str, ...]:
    """Return why a deployment's model does not fit on a machine; empty if it fits, or if nothing is known about it."""
    fit = fit_of(spec, sku, serving)
    if fit is None:
        return ()
    if _dtype(serving) in _PRECISION:
        return fit.reasons
    takes = (
        2 * (fit.memory.total - fit.memory.overhead) + fit.memory.overhead
    )  # float32 doubles all but CUDA's overhead
    return (
        (f"in float32 it takes {takes:,.0f} MiB of {fit.placement.limit_mib:,.0f} MiB usable",)
        if takes > fit.placement.limit_mib
        else ()
    )
