"""Online deployments: timeouts, request limits and threads that must agree, and stored request data."""

import math
from collections.abc import Iterator
from typing import Final

from llama_endpoints.azure.limits import (
    ANSWER_S,
    ANSWER_TOKENS,
    DISK_BYTES_S,
    KUBERNETES,
    MANAGED,
    REQUEST_MS,
    SPARE_THREADS,
    VLLM_START_S,
)
from llama_endpoints.planning.skus import Sku
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import ONLINE_DEPLOYMENTS, SpecKind
from llama_endpoints.validate.machines import fit_of, machine_of
from llama_endpoints.validate.places import PROBES
from llama_endpoints.validate.serving import Serving
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import read_by_azure

_TIMEOUT: Final[Place] = ("request_settings", "request_timeout_ms")
_CONCURRENT: Final[Place] = ("request_settings", "max_concurrent_requests_per_instance")
_GRACEFUL_S: Final = 30
_LEAST_MS: Final = 1000
"""A request timeout below this was probably meant in seconds."""
_REDACTED: Final = frozenset(("model_inputs", "model_outputs"))
"""Collections of a data collector that get what our own code has redacted, if LLAMA_COLLECT wants that."""
_PERIOD_S: Final = 10
"""The default interval between probes: ML/reference-yaml-deployment-managed-online.md."""
_WORKER_S: Final = 300
"""The defaults of gunicorn and azmlinfsrv."""


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of online deployments."""
    if spec.kind not in ONLINE_DEPLOYMENTS:
        return
    serving = Serving.of(spec, tree)
    if serving.ours:
        yield from _deadline(spec, serving)
        yield from _places(spec, serving)
        if not serving.has_server:
            yield from _process(spec, serving)
        yield from _late(spec, serving, machine_of(spec, tree))
        yield from _stored_prompts(spec, serving)
        yield from _nowhere_collected(spec, serving)
    yield from _patience(spec, serving)
    yield from _unit(spec)
    yield from _overlap(spec)
    yield from _scale(spec)


def _unit(spec: SpecFile) -> Iterator[Finding]:
    """Yield a finding if milliseconds look like seconds."""
    given = read_by_azure(spec.at(*_TIMEOUT))
    if given is not None and 0 < given < _LEAST_MS:
        yield spec.find(
            Rule.UNIT, _TIMEOUT,
            f"is {given} ms; longer requests are cut off. Set {1000 * given} if you mean {given} s.",
        )  # fmt: skip


def _overlap(spec: SpecFile) -> Iterator[Finding]:
    """Yield a finding if a probe's timeout exceeds the interval between probes."""
    for probe in PROBES:
        timeout, period = (read_by_azure(spec.at(probe, name)) for name in ("timeout", "period"))
        if timeout is not None and timeout > (_PERIOD_S if period is None else period):
            yield spec.find(
                Rule.PROBE, (probe, "timeout"),
                f"is {timeout} s, longer than the probe interval of {_PERIOD_S if period is None else period} s. Lower it, or raise period.",
            )  # fmt: skip


def _timeout_s(spec: SpecFile) -> float:
    return spec.number(*_TIMEOUT, default=REQUEST_MS) / 1000


def _at(serving: Serving, name: str) -> Place:
    return (*serving.place, name)


def _deadline(spec: SpecFile, serving: Serving) -> Iterator[Finding]:
    if spec.at(*_TIMEOUT) is None:
        yield spec.find(
            Rule.DEADLINE, _TIMEOUT,
            f"is missing; Azure's default of {REQUEST_MS} is too short for a long completion. "
            f"A managed deployment allows up to {1000 * MANAGED.most_s}.",
        )  # fmt: skip
        return
    latest, given = _timeout_s(spec) - ANSWER_S, serving.settings.deadline_s
    deadline = MANAGED.deadline_s if given is None else given
    if deadline > latest:
        said = "is" if given is not None else "is not set; the default is"
        yield spec.find(
            Rule.DEADLINE, _at(serving, "LLAMA_DEADLINE_S"),
            f"{said} {deadline:g} s, but Azure gives up after {_timeout_s(spec):g} s (request_timeout_ms), and the answer is lost. "
            f"Lower it to at most {latest:g}, or raise request_timeout_ms.",
        )  # fmt: skip


def _places(spec: SpecFile, serving: Serving) -> Iterator[Finding]:
    front = KUBERNETES if spec.kind is SpecKind.KUBERNETES_DEPLOYMENT else MANAGED
    given, right = spec.number(*_CONCURRENT, default=1), math.ceil(serving.inside / front.passes)
    if given != right:
        yield spec.find(
            Rule.QUEUE, _CONCURRENT,
            f"lets {front.passes * given} requests through (Azure answers {front.refusal} above), but the server admits "
            f"{serving.inside} (LLAMA_MAX_NUM_SEQS {serving.settings.max_num_seqs} + LLAMA_QUEUE "
            f"{serving.settings.queue}). Set {right}, or change LLAMA_QUEUE.",
        )  # fmt: skip


def _late(spec: SpecFile, serving: Serving, sku: Sku | None) -> Iterator[Finding]:
    """Yield a finding if the last request in the queue cannot end in time."""
    fit = fit_of(spec, sku, serving) if sku else None
    if fit is None or not fit.fits or serving.settings.queue == 0:
        return
    deadline = serving.settings.deadline_s or MANAGED.deadline_s
    last_s = serving.inside * ANSWER_TOKENS / fit.speed.all
    if last_s > deadline:
        in_time = math.floor(deadline * fit.speed.all / ANSWER_TOKENS) - serving.settings.max_num_seqs
        yield spec.find(
            Rule.LATE, _at(serving, "LLAMA_QUEUE"),
            f"is {serving.settings.queue}: with answers of {ANSWER_TOKENS} tokens, at about {fit.speed.all:.0f} tokens/s, the last "
            f"would end after {last_s:.0f} s, but the deadline is {deadline:g}. Set {max(0, in_time)}, so that further requests are refused "
            "at once.",
        )  # fmt: skip


def _process(spec: SpecFile, serving: Serving) -> Iterator[Finding]:
    known = serving.image_known or "GUNICORN_CMD_ARGS" in serving.variables
    place = _at(serving, "GUNICORN_CMD_ARGS")
    threads, drain = serving.flag("--threads", 1), serving.flag("--graceful-timeout", _GRACEFUL_S)
    needed = serving.inside + SPARE_THREADS
    if known and (threads is None or threads < needed):
        yield spec.find(
            Rule.THREADS, place,
            f"gives {threads} threads, but each of {serving.inside} admitted requests holds one, and a probe needs "
            f"a free one. Set --threads to {needed} or more.",
        )  # fmt: skip
    if known and (drain is None or drain < _timeout_s(spec)):
        yield spec.find(
            Rule.DRAIN, place,
            f"ends a drain after {drain} s, but a request may take {_timeout_s(spec):g} s. Set "
            f"--graceful-timeout to {_timeout_s(spec):g} or more.",
        )  # fmt: skip
    workers = serving.variables.get("WORKER_COUNT", "1").strip()
    if workers != "1" or serving.flag("--workers", 1) != 1:
        name = "WORKER_COUNT" if workers != "1" else "GUNICORN_CMD_ARGS"
        rule = Rule.ENGINE if serving.has_vllm else Rule.WORKERS  # a second vLLM finds no memory
        yield spec.find(
            rule, _at(serving, name),
            'must be "1": each worker would load the weights again and have its own queue.',
        )  # fmt: skip
    if serving.variables.get("WORKER_PRELOAD", "false").strip().lower() != "false":
        yield spec.find(
            Rule.PRELOAD, _at(serving, "WORKER_PRELOAD"),
            'must be "false": a forked process cannot use its parent\'s CUDA context.',
        )  # fmt: skip


def _patience(spec: SpecFile, serving: Serving) -> Iterator[Finding]:
    needed = serving.loading_s
    if not serving.variant:
        return
    about = _loading(serving, needed)
    for probe in PROBES:
        if serving.has_server and probe == "liveness_probe":
            continue  # this server answers from the start
        delay, period = (
            spec.number(probe, "initial_delay", default=10),
            spec.number(probe, "period", default=10),
        )
        patience = delay + period * spec.number(probe, "failure_threshold", default=30)
        if patience < needed:
            yield spec.find(
                Rule.PATIENCE if serving.waits else Rule.PROBE, (probe,),
                f"gives up after {patience} s (initial_delay + period x failure_threshold), but {about}: {_outcome(serving)}. "
                f"Raise initial_delay or failure_threshold to a total of {needed} s or more.",
            )  # fmt: skip
    if serving.waits:
        yield from _start(spec, serving, needed, about)


def _outcome(serving: Serving) -> str:
    restarted = "the container would be restarted forever"
    return restarted if serving.waits else f"{restarted}, unless its server answers before the model is loaded"


def _loading(serving: Serving, needed: int) -> str:
    assert serving.variant is not None  # noqa: S101
    started = f", including {VLLM_START_S} s to start vLLM" if serving.has_vllm else ""
    return (
        f"{serving.variant.name} has {serving.weight_bytes:,} bytes, which load in {needed} s from a disk of "
        f"{DISK_BYTES_S / 1e6:.0f} MB/s{started}"
    )


def _start(spec: SpecFile, serving: Serving, needed: int, about: str) -> Iterator[Finding]:
    """Yield what else may end a start too early: gunicorn, and the engine."""
    worker = serving.variables.get("WORKER_TIMEOUT", str(_WORKER_S)).strip()
    if not serving.has_server and (not worker.isdecimal() or int(worker) < needed):
        yield spec.find(
            Rule.PATIENCE, _at(serving, "WORKER_TIMEOUT"),
            f"is {worker} s, after which gunicorn kills a worker that is still loading; {about}. Set {needed} or more.",
        )  # fmt: skip
    if serving.has_vllm and serving.settings.vllm_start_s < needed:
        yield spec.find(
            Rule.PATIENCE, _at(serving, "LLAMA_VLLM_START_S"),
            f"is {serving.settings.vllm_start_s} s, after which starting vLLM fails; {about}. Set {needed} or more.",
        )  # fmt: skip


def _stored_prompts(spec: SpecFile, serving: Serving) -> Iterator[Finding]:
    """Yield what would store callers' texts."""
    if serving.settings.log_prompts:
        yield spec.find(
            Rule.KEPT_PROMPTS, _at(serving, "LLAMA_LOG_PROMPTS"),
            "writes requests to the log. Remove it.",
        )  # fmt: skip
    if spec.at("app_insights_enabled") is True:
        yield spec.find(
            Rule.KEPT_PROMPTS, ("app_insights_enabled",),
            f"stores the container's output{_completions(serving)} in Application Insights. Set false if texts must not be stored.",
        )  # fmt: skip
    wanted = _REDACTED if serving.settings.collect == "azureml" else frozenset[str]()
    for name, collection in spec.mapping("data_collector", "collections").items():
        if _is_on(collection) and name not in wanted:
            yield spec.find(
                Rule.KEPT_PROMPTS, ("data_collector", "collections", name),
                'stores requests. Remove data_collector, or set enabled: "false".',
            )  # fmt: skip


def _nowhere_collected(spec: SpecFile, serving: Serving) -> Iterator[Finding]:
    """Yield a finding if the container would not start, since what it collects has no data collector."""
    if serving.settings.collect != "azureml":
        return
    given = spec.mapping("data_collector", "collections")
    lacking = [name for name in sorted(_REDACTED) if not _is_on(given.get(name))]
    if lacking:
        yield spec.find(
            Rule.VARIABLE, _at(serving, "LLAMA_COLLECT"),
            f"prevents the start: data_collector lacks the collection {' and '.join(lacking)}. Add it, with enabled: \"true\".",
        )  # fmt: skip


def _is_on(collection: object) -> bool:
    return isinstance(collection, dict) and str(collection.get("enabled")).lower() == "true"


def _completions(serving: Serving) -> str:
    """Return that Azure's server sends completions to Application Insights, unless that is switched off."""
    logged = serving.variables.get("APP_INSIGHTS_LOG_RESPONSE_ENABLED", "true").strip().lower()
    return (
        ""
        if serving.has_server or logged == "false"
        else ' and each completion (APP_INSIGHTS_LOG_RESPONSE_ENABLED is not "false")'
    )


def _scale(spec: SpecFile) -> Iterator[Finding]:
    least, most = spec.at("scale_settings", "min_instances"), spec.at("scale_settings", "max_instances")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        yield spec.find(
            Rule.SCALE, ("scale_settings", "min_instances"),
            f"is {least}, but max_instances is {most}. It must not exceed max_instances.",
        )  # fmt: skip
