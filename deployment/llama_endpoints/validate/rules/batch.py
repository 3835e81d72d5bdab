"""Batch deployments: results that would be lost silently, and processes that share GPUs."""

from collections.abc import Iterator
from typing import Final

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import SpecKind
from llama_endpoints.validate.machines import machine_of
from llama_endpoints.validate.places import placed
from llama_endpoints.validate.references import cluster
from llama_endpoints.validate.serving import Serving
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import read_by_azure, shown

_ACTION: Final[Place] = ("settings", "output_action")
_FILE: Final[Place] = ("settings", "output_file_name")
_THRESHOLD: Final[Place] = ("settings", "error_threshold")
_TIMEOUT: Final[Place] = ("settings", "retry_settings", "timeout")
_PROCESSES: Final[Place] = ("settings", "max_concurrency_per_instance")
_INSTANCES: Final[Place] = ("resources", "instance_count")
DEFAULT_TIMEOUT_S: Final = 30


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of batch deployments."""
    if spec.kind is not SpecKind.BATCH_DEPLOYMENT:
        return
    serving = Serving.of(spec, tree)
    yield from _output(spec, serving)
    yield from _failures(spec)
    if serving.ours:
        yield from _gpus(spec, serving, tree)
    yield from _instances(spec, tree)
    if spec.at("resources", "instance_type") is not None:
        yield spec.find(
            Rule.PLACE, ("resources", "instance_type"),
            "has no effect: the compute determines the machines. Remove it, and use a cluster of that size.",
        )  # fmt: skip


def _output(spec: SpecFile, serving: Serving) -> Iterator[Finding]:
    action, name = spec.text(*placed(spec, _ACTION)).lower() or "append_row", spec.at(*placed(spec, _FILE))
    if action == "summary_only" and name is not None:
        yield spec.find(
            Rule.OUTPUT,
            placed(spec, _FILE),
            "is set, but output_action: summary_only writes no such file. Remove it.",
        )
    elif isinstance(name, str) and ("/" in name or "\\" in name or name in {"", ".", ".."}):
        yield spec.find(
            Rule.OUTPUT, placed(spec, _FILE), f"must be a file name without a folder, not {shown(name)}."
        )
    ours = serving.settings.batch_output
    if serving.ours and ours != action and action in {"append_row", "summary_only"}:
        place = (*serving.place, "LLAMA_BATCH_OUTPUT")
        yield spec.find(
            Rule.OUTPUT, place,
            f"is {ours} (the default is append_row), but output_action is {action}. Set both to the same value: "
            "the driver cannot read Azure's.",
        )  # fmt: skip


def _failures(spec: SpecFile) -> Iterator[Finding]:
    threshold, timeout = spec.at(*placed(spec, _THRESHOLD)), spec.at(*placed(spec, _TIMEOUT))
    if threshold is None or threshold == -1:
        said = "is -1" if threshold == -1 else "is not set; the default is -1"
        yield spec.find(
            Rule.IGNORED_FAILURES, placed(spec, _THRESHOLD),
            f"{said}: a job succeeds even if all files fail. Set 0, or how many files may fail.",
        )  # fmt: skip
    seconds = DEFAULT_TIMEOUT_S if timeout is None else read_by_azure(timeout)
    if seconds is not None and 0 < seconds <= DEFAULT_TIMEOUT_S:
        said = "is not set; the default is" if timeout is None else "is"
        yield spec.find(
            Rule.SHORT_TIMEOUT, placed(spec, _TIMEOUT),
            f"{said} {seconds} s for a mini-batch of files. Set the time of the largest one, such as 86400.",
        )  # fmt: skip


def _gpus(spec: SpecFile, serving: Serving, tree: SpecTree) -> Iterator[Finding]:
    processes, each = spec.number(*placed(spec, _PROCESSES), default=1), serving.settings.batch_gpus
    sku = machine_of(spec, tree)
    if processes > 1 and each is None:
        yield spec.find(
            Rule.GPUS, placed(spec, _PROCESSES),
            f"starts {processes} processes on a machine, and each would load the weights on the same GPU. Set 1, "
            "or set LLAMA_BATCH_GPUS to the number of GPUs of each process.",
        )  # fmt: skip
    elif sku is not None and each is not None and processes * each > sku.gpus:
        place = (*serving.place, "LLAMA_BATCH_GPUS")
        yield spec.find(
            Rule.GPUS, place,
            f"gives {processes} processes (max_concurrency_per_instance) {each} GPUs each, but {sku.name} has "
            f"{sku.gpus}. Lower one of them.",
        )  # fmt: skip


def _instances(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    compute = cluster(spec, tree)
    if compute is None:
        return
    instances, most = spec.number(*_INSTANCES, default=1), compute.number("max_instances", default=1)
    if instances > most:
        yield spec.find(
            Rule.INSTANCES, _INSTANCES,
            f"requests {instances} machines, but {compute.name} has at most {most} (its max_instances): the job "
            "would wait forever. Lower it, or raise max_instances.",
        )  # fmt: skip
