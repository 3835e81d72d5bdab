"""Online deployments: times, places and threads that have to agree, and what would be kept of callers."""

from collections.abc import Iterator
from typing import Final

from deployment.validate.findings import Finding, Rule
from deployment.validate.kinds import ONLINE_DEPLOYMENTS
from deployment.validate.lines import Place
from deployment.validate.ranges import PROBES, shown
from deployment.validate.serving import Serving
from deployment.validate.tree import Spec, Tree

ANSWER_S: Final = 2
"""Between our deadline and the front's, so that the answer is ours."""
DEADLINE_S: Final = 178
"""Of our online entry, where LLAMA_DEADLINE_S is not set."""
SPARE_THREADS: Final = 4
"""Beside those of requests, so that a probe finds a free one."""
_TIMEOUT: Final[Place] = ("request_settings", "request_timeout_ms")
_CONCURRENT: Final[Place] = ("request_settings", "max_concurrent_requests_per_instance")
_TIMEOUT_MS: Final = 5_000
_GRACEFUL_S: Final = 30
_WORKER_S: Final = 300
"""What Azure, gunicorn and azmlinfsrv take where nothing is said."""


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of online deployments."""
    if spec.kind not in ONLINE_DEPLOYMENTS:
        return
    serving = Serving.of(spec, tree)
    if serving.ours:
        yield from _deadline(spec, serving)
        yield from _places(spec, serving)
        yield from _process(spec, serving)
    yield from _patience(spec, serving)
    yield from _kept(spec, serving)
    yield from _scale(spec)


def _timeout_s(spec: Spec) -> float:
    return spec.number(*_TIMEOUT, default=_TIMEOUT_MS) / 1000


def _at(serving: Serving, name: str) -> Place:
    return (*serving.place, name)


def _deadline(spec: Spec, serving: Serving) -> Iterator[Finding]:
    if spec.at(*_TIMEOUT) is None:
        yield spec.find(
            Rule.DEADLINE, _TIMEOUT,
            "is missing, and Azure's default of 5000 is less than a long completion takes. 180000 is the "
            "most for a managed deployment.",
        )  # fmt: skip
        return
    latest, given = _timeout_s(spec) - ANSWER_S, serving.settings.deadline_s
    deadline = DEADLINE_S if given is None else given
    if deadline > latest:
        said = "is" if given is not None else "is not set, and then"
        yield spec.find(
            Rule.DEADLINE, _at(serving, "LLAMA_DEADLINE_S"),
            f"{said} {deadline:g} s, and the front gives up after {_timeout_s(spec):g} s "
            f"(request_timeout_ms): what is done by then is lost. It must be at most {latest:g}: lower it, or "
            "raise request_timeout_ms.",
        )  # fmt: skip


def _places(spec: Spec, serving: Serving) -> Iterator[Finding]:
    front, inside = 2 * spec.number(*_CONCURRENT, default=1), serving.inside
    if front not in (inside, inside + 1):
        yield spec.find(
            Rule.QUEUE, _CONCURRENT,
            f"lets {front} requests through (the front answers 429 above twice this), and {inside} are taken "
            f"in (LLAMA_MAX_NUM_SEQS {serving.settings.max_num_seqs} + LLAMA_QUEUE {serving.settings.queue}). "
            f"Set {max(1, (inside + 1) // 2)}, or change LLAMA_QUEUE.",
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
        yield spec.find(
            Rule.WORKERS, _at(serving, name),
            'must be one worker ("1"): each would load the weights again, and have a queue of its own.',
        )  # fmt: skip
    if serving.variables.get("WORKER_PRELOAD", "false").strip().lower() != "false":
        yield spec.find(
            Rule.WORKERS, _at(serving, "WORKER_PRELOAD"),
            'must be "false": a forked process can\'t use the CUDA context of its parent.',
        )  # fmt: skip


def _patience(spec: Spec, serving: Serving) -> Iterator[Finding]:
    needed = serving.reading_s
    if not serving.variant:
        return
    about = f"{serving.variant.name} has {serving.variant.shape.weight_bytes():,} bytes, {needed} s on a slow day (25 MB/s)"
    for probe in PROBES:
        delay, period = (
            spec.number(probe, "initial_delay", default=10),
            spec.number(probe, "period", default=10),
        )
        patience = delay + period * spec.number(probe, "failure_threshold", default=30)
        if patience < needed:
            yield spec.find(
                Rule.PATIENCE, (probe,),
                f"gives up after {patience} s (initial_delay + period x failure_threshold), and {about}: the "
                f"container would be restarted for ever. Raise initial_delay or failure_threshold to {needed} "
                "s or more in all.",
            )  # fmt: skip
    worker = serving.variables.get("WORKER_TIMEOUT", str(_WORKER_S)).strip()
    if not worker.isdecimal() or int(worker) < needed:
        yield spec.find(
            Rule.PATIENCE, _at(serving, "WORKER_TIMEOUT"),
            f"is {worker} s, after which gunicorn kills a worker that loads; {about}. Set {needed} or more.",
        )  # fmt: skip


def _kept(spec: Spec, serving: Serving) -> Iterator[Finding]:
    logged = serving.variables.get("APP_INSIGHTS_LOG_RESPONSE_ENABLED", "").strip().lower()
    if logged != "false":
        yield spec.find(
            Rule.KEPT_PROMPTS, _at(serving, "APP_INSIGHTS_LOG_RESPONSE_ENABLED"),
            f'is {shown(logged) if logged else "not set"}, and completions go to the log: it is on by '
            'default. Set "false".',
        )  # fmt: skip
    if serving.settings.log_prompts:
        yield spec.find(
            Rule.KEPT_PROMPTS, _at(serving, "LLAMA_LOG_PROMPTS"),
            "writes what callers send to the log. Leave it out.",
        )  # fmt: skip
    if spec.at("app_insights_enabled") is True:
        yield spec.find(
            Rule.KEPT_PROMPTS, ("app_insights_enabled",),
            "keeps what the container writes, in Application Insights. Set false where texts must not be "
            "kept.",
        )  # fmt: skip
    for name, collection in spec.mapping("data_collector", "collections").items():
        if isinstance(collection, dict) and str(collection.get("enabled")).lower() == "true":
            yield spec.find(
                Rule.KEPT_PROMPTS, ("data_collector", "collections", name),
                'keeps what callers send. Leave data_collector out, or set enabled: "false".',
            )  # fmt: skip


def _scale(spec: Spec) -> Iterator[Finding]:
    least, most = spec.at("scale_settings", "min_instances"), spec.at("scale_settings", "max_instances")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        yield spec.find(
            Rule.SCALE, ("scale_settings", "min_instances"),
            f"is {least} and max_instances is {most}. The first must not be above the second.",
        )  # fmt: skip
