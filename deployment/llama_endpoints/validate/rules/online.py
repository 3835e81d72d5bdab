"""Online deployments: times, places and threads that have to agree, and what would be kept of callers."""

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
from llama_endpoints.validate.kinds import ONLINE_DEPLOYMENTS, Kind
from llama_endpoints.validate.machines import fit_of, machine_of
from llama_endpoints.validate.places import PROBES
from llama_endpoints.validate.serving import Serving
from llama_endpoints.validate.spec_files import Spec, Tree
from llama_endpoints.validate.values import read_by_azure

_TIMEOUT: Final[Place] = ("request_settings", "request_timeout_ms")
_CONCURRENT: Final[Place] = ("request_settings", "max_concurrent_requests_per_instance")
_GRACEFUL_S: Final = 30
_LEAST_MS: Final = 1000
"""Ours: nobody means less."""
_PERIOD_S: Final = 10
"""From one probe to the next where nothing is said: ML/reference-yaml-deployment-managed-online.md."""
_WORKER_S: Final = 300
"""What gunicorn and azmlinfsrv take where nothing is said."""


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of online deployments."""
    if spec.kind not in ONLINE_DEPLOYMENTS:
        return
    serving = Serving.of(spec, tree)
    if serving.ours:
        yield from _deadline(spec, serving)
        yield from _places(spec, serving)
        if not serving.has_server:
            yield from _process(spec, serving)
        yield from _late(spec, serving, machine_of(spec, tree))
        yield from _kept(spec, serving)
    yield from _patience(spec, serving)
    yield from _unit(spec)
    yield from _overlap(spec)
    yield from _scale(spec)


def _unit(spec: Spec) -> Iterator[Finding]:
    """Milliseconds are easily taken for seconds."""
    given = read_by_azure(spec.at(*_TIMEOUT))
    if given is not None and 0 < given < _LEAST_MS:
        yield spec.find(
            Rule.UNIT, _TIMEOUT,
            f"is {given} ms, and what takes longer is cut off. Set {1000 * given} where {given} s are meant.",
        )  # fmt: skip


def _overlap(spec: Spec) -> Iterator[Finding]:
    """A probe that is still waited for when the next one is due."""
    for probe in PROBES:
        timeout, period = (read_by_azure(spec.at(probe, name)) for name in ("timeout", "period"))
        if timeout is not None and timeout > (_PERIOD_S if period is None else period):
            yield spec.find(
                Rule.PROBE, (probe, "timeout"),
                f"is {timeout} s, longer than the {_PERIOD_S if period is None else period} s from one probe to the next. Lower it, or raise period.",
            )  # fmt: skip


def _timeout_s(spec: Spec) -> float:
    return spec.number(*_TIMEOUT, default=REQUEST_MS) / 1000


def _at(serving: Serving, name: str) -> Place:
    return (*serving.place, name)


def _deadline(spec: Spec, serving: Serving) -> Iterator[Finding]:
    if spec.at(*_TIMEOUT) is None:
        yield spec.find(
            Rule.DEADLINE, _TIMEOUT,
            f"is missing, and Azure's default of {REQUEST_MS} is less than a long completion takes. "
            f"{1000 * MANAGED.most_s} is the most for a managed deployment.",
        )  # fmt: skip
        return
    latest, given = _timeout_s(spec) - ANSWER_S, serving.settings.deadline_s
    deadline = MANAGED.deadline_s if given is None else given
    if deadline > latest:
        said = "is" if given is not None else "is not set, and then"
        yield spec.find(
            Rule.DEADLINE, _at(serving, "LLAMA_DEADLINE_S"),
            f"{said} {deadline:g} s, and the front gives up after {_timeout_s(spec):g} s "
            f"(request_timeout_ms): what is done by then is lost. It must be at most {latest:g}: lower it, or "
            "raise request_timeout_ms.",
        )  # fmt: skip


def _places(spec: Spec, serving: Serving) -> Iterator[Finding]:
    front = KUBERNETES if spec.kind is Kind.KUBERNETES_DEPLOYMENT else MANAGED
    given, right = spec.number(*_CONCURRENT, default=1), math.ceil(serving.inside / front.passes)
    if given != right:
        yield spec.find(
            Rule.QUEUE, _CONCURRENT,
            f"lets {front.passes * given} requests through (the front answers {front.refusal} above), and "
            f"{serving.inside} are taken in (LLAMA_MAX_NUM_SEQS {serving.settings.max_num_seqs} + LLAMA_QUEUE "
            f"{serving.settings.queue}). Set {right}, or change LLAMA_QUEUE.",
        )  # fmt: skip


def _late(spec: Spec, serving: Serving, sku: Sku | None) -> Iterator[Finding]:
    """Of those that wait, the last is to end in time."""
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
            f"would end after {last_s:.0f} s, and the deadline is {deadline:g}. Set {max(0, in_time)}, so that the others are told "
            "at once.",
        )  # fmt: skip


def _process(spec: Spec, serving: Serving) -> Iterator[Finding]:
    known = serving.image_known or "GUNICORN_CMD_ARGS" in serving.variables
    place = _at(serving, "GUNICORN_CMD_ARGS")
    threads, drain = serving.flag("--threads", 1), serving.flag("--graceful-timeout", _GRACEFUL_S)
    needed = serving.inside + SPARE_THREADS
    if known and (threads is None or threads < needed):
        yield spec.find(
            Rule.THREADS, place,
            f"gives {threads} threads; each of {serving.inside} requests inside holds one, and a probe needs "
            f"a free one. It must have --threads {needed} or more.",
        )  # fmt: skip
    if known and (drain is None or drain < _timeout_s(spec)):
        yield spec.find(
            Rule.DRAIN, place,
            f"ends a drain after {drain} s, and a request may take {_timeout_s(spec):g} s. It must have "
            f"--graceful-timeout {_timeout_s(spec):g} or more.",
        )  # fmt: skip
    workers = serving.variables.get("WORKER_COUNT", "1").strip()
    if workers != "1" or serving.flag("--workers", 1) != 1:
        name = "WORKER_COUNT" if workers != "1" else "GUNICORN_CMD_ARGS"
        rule = Rule.ENGINE if serving.has_vllm else Rule.WORKERS  # (a second vLLM finds no memory)
        yield spec.find(
            rule, _at(serving, name),
            'must be one worker ("1"): each would load the weights again, and have a queue of its own.',
        )  # fmt: skip
    if serving.variables.get("WORKER_PRELOAD", "false").strip().lower() != "false":
        yield spec.find(
            Rule.PRELOAD, _at(serving, "WORKER_PRELOAD"),
            'must be "false": a forked process can\'t use the CUDA context of its parent.',
        )  # fmt: skip


def _patience(spec: Spec, serving: Serving) -> Iterator[Finding]:
    needed = serving.loading_s
    if not serving.variant:
        return
    about = _loading(serving, needed)
    for probe in PROBES:
        if serving.has_server and probe == "liveness_probe":
            continue  # (it is answered from the first second on)
        delay, period = (
            spec.number(probe, "initial_delay", default=10),
            spec.number(probe, "period", default=10),
        )
        patience = delay + period * spec.number(probe, "failure_threshold", default=30)
        if patience < needed:
            yield spec.find(
                Rule.PATIENCE if serving.waits else Rule.PROBE, (probe,),
                f"gives up after {patience} s (initial_delay + period x failure_threshold), and {about}: {_outcome(serving)}. "
                f"Raise initial_delay or failure_threshold to {needed} s or more in all.",
            )  # fmt: skip
    if serving.waits:
        yield from _start(spec, serving, needed, about)


def _outcome(serving: Serving) -> str:
    restarted = "the container would be restarted for ever"
    return restarted if serving.waits else f"{restarted}, unless its server answers before the model is loaded"


def _loading(serving: Serving, needed: int) -> str:
    assert serving.variant is not None  # noqa: S101
    started = f", with the {VLLM_START_S} s that vLLM takes beside" if serving.has_vllm else ""
    return (
        f"{serving.variant.name} has {serving.weight_bytes:,} bytes, {needed} s from a disk of "
        f"{DISK_BYTES_S / 1e6:.0f} MB/s{started}"
    )


def _start(spec: Spec, serving: Serving, needed: int, about: str) -> Iterator[Finding]:
    """What else may end a start too early: gunicorn, and the engine itself."""
    worker = serving.variables.get("WORKER_TIMEOUT", str(_WORKER_S)).strip()
    if not serving.has_server and (not worker.isdecimal() or int(worker) < needed):
        yield spec.find(
            Rule.PATIENCE, _at(serving, "WORKER_TIMEOUT"),
            f"is {worker} s, after which gunicorn kills a worker that loads; {about}. Set {needed} or more.",
        )  # fmt: skip
    if serving.has_vllm and serving.settings.vllm_start_s < needed:
        yield spec.find(
            Rule.PATIENCE, _at(serving, "LLAMA_VLLM_START_S"),
            f"is {serving.settings.vllm_start_s} s, after which the start of vLLM has failed; {about}. Set {needed} or more.",
        )  # fmt: skip


def _kept(spec: Spec, serving: Serving) -> Iterator[Finding]:
    """What would keep texts of callers."""
    if serving.settings.log_prompts:
        yield spec.find(
            Rule.KEPT_PROMPTS, _at(serving, "LLAMA_LOG_PROMPTS"),
            "writes what callers send to the log. Leave it out.",
        )  # fmt: skip
    if spec.at("app_insights_enabled") is True:
        yield spec.find(
            Rule.KEPT_PROMPTS, ("app_insights_enabled",),
            f"keeps what the container writes{_completions(serving)}, in Application Insights. Set false where texts must not be kept.",
        )  # fmt: skip
    for name, collection in spec.mapping("data_collector", "collections").items():
        if isinstance(collection, dict) and str(collection.get("enabled")).lower() == "true":
            yield spec.find(
                Rule.KEPT_PROMPTS, ("data_collector", "collections", name),
                'keeps what callers send. Leave data_collector out, or set enabled: "false".',
            )  # fmt: skip


def _completions(serving: Serving) -> str:
    """Azure's server sends them to Application Insights where that is on, unless it is told not to."""
    logged = serving.variables.get("APP_INSIGHTS_LOG_RESPONSE_ENABLED", "true").strip().lower()
    return (
        ""
        if serving.has_server or logged == "false"
        else ', and each completion (APP_INSIGHTS_LOG_RESPONSE_ENABLED is not "false")'
    )


def _scale(spec: Spec) -> Iterator[Finding]:
    least, most = spec.at("scale_settings", "min_instances"), spec.at("scale_settings", "max_instances")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        yield spec.find(
            Rule.SCALE, ("scale_settings", "min_instances"),
            f"is {least} and max_instances is {most}. The first must not be above the second.",
        )  # fmt: skip
