"""The machine that a deployment runs on, and how its model fits there."""

from dataclasses import replace
from typing import Final

from llama_endpoints.azure.limits import NODE_SIZE
from llama_endpoints.planning import sizing, skus
from llama_endpoints.planning.sizing import Fit, Precision, Runner, Workload
from llama_endpoints.planning.skus import Cloud, Sku
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.kinds import Kind
from llama_endpoints.validate.references import cluster
from llama_endpoints.validate.serving import Serving
from llama_endpoints.validate.spec_files import Spec, Tree

_PRECISION: Final = {"bfloat16": Precision.BF16, "float16": Precision.FP16}
GPUS: Final = "nvidia.com/gpu"
"""As a cluster calls them."""


def sizes() -> dict[str, Sku]:
    """Azure's, by their names."""
    return {sku.name: sku for sku in skus.SKUS.values() if sku.cloud is Cloud.AZURE}


def instance_type(spec: Spec, tree: Tree) -> Spec | None:
    """The file of the type of instance that a deployment on Kubernetes names, if it is there."""
    return tree.named(spec.text("instance_type"), Kind.INSTANCE_TYPE)


def machine_of(spec: Spec, tree: Tree) -> Sku | None:
    """Of a deployment, with the GPUs that it gets, or of a compute's file."""
    if spec.kind is Kind.BATCH_DEPLOYMENT:
        compute = cluster(spec, tree)
        return machine_of(compute, tree) if compute else None
    if spec.kind is Kind.KUBERNETES_DEPLOYMENT:
        made = instance_type(spec, tree)
        return _node(made) if made else None
    return skus.azure_size(spec.text(*size_place(spec)))


def _node(made: Spec) -> Sku | None:
    sku = skus.azure_size(made.text("spec", "nodeSelector", NODE_SIZE))
    gpus = made.number("spec", "resources", "limits", GPUS, default=0)
    return replace(sku, gpus=min(sku.gpus, gpus)) if sku and gpus > 0 else None


def size_place(spec: Spec) -> Place:
    """The field of a deployment or of a compute that says its size."""
    places = {Kind.COMPUTE: "size", Kind.BATCH_DEPLOYMENT: "compute"}
    return (places.get(spec.kind, "instance_type"),)


def context_of(serving: Serving) -> int:
    """Tokens: the given context, else as many as the model was trained with."""
    trained = serving.variant.trained_positions.value if serving.variant else 0
    return serving.settings.context or trained


def concurrency_of(serving: Serving) -> int:
    """Sequences that are computed at a time."""
    return 1 if _runner(serving) is Runner.PIPELINE else serving.settings.max_num_seqs


_RUNNERS: Final = {"pipeline": Runner.PIPELINE, "vllm": Runner.VLLM}


def _runner(serving: Serving) -> Runner | None:
    return _RUNNERS.get(serving.engine)


def fit_of(spec: Spec, sku: Sku, serving: Serving, usual: int = 1) -> Fit | None:
    """A deployment's model on a machine; None where it is not known, or not there. What has 32 bits is taken for 16.

    Args:
        spec: the deployment.
        sku: the machine.
        serving: what it serves with.
        usual: tokens that each of vLLM's sequences shall have room for, beside one at its longest.
    """
    if serving.variant is None or serving.is_elsewhere:
        return None
    workload = Workload(context_of(serving), concurrency_of(serving), usual if serving.has_vllm else None)
    own_disk = spec.kind is not Kind.KUBERNETES_DEPLOYMENT
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
    """The machine with as much of its memory as vLLM is given, where that is not what is planned with."""
    share = serving.settings.vllm_gpu_share
    if not serving.has_vllm or share == sizing.USABLE:
        return sku
    return replace(sku, gpu=replace(sku.gpu, memory_mib=round(sku.gpu.memory_mib * share / sizing.USABLE)))


def _dtype(serving: Serving) -> str:
    given = serving.settings.dtype
    return serving.variant.dtype if given == "auto" and serving.variant else given


def reasons_against(spec: Spec, sku: Sku, serving: Serving) -> tuple[str, ...]:
    """Why a deployment's model does not fit on a machine; empty where it fits, or where nothing is known of it."""
    fit = fit_of(spec, sku, serving)
    if fit is None:
        return ()
    if _dtype(serving) in _PRECISION:
        return fit.reasons
    takes = 2 * (fit.memory.total - fit.memory.overhead) + fit.memory.overhead  # float32: all but CUDA's own
    return (
        (f"in float32 it takes {takes:,.0f} MiB where {fit.placement.limit_mib:,.0f} may be used",)
        if takes > fit.placement.limit_mib
        else ()
    )
