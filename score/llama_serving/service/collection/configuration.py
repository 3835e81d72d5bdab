"""The collector that the settings ask for, and what users and operators are told of it."""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llama_serving.errors import SetupError
from llama_serving.service.collection.collector import Collector
from llama_serving.service.collection.redaction import Redactor
from llama_serving.service.collection.sinks.sink import Sink
from llama_serving.settings import Settings

if TYPE_CHECKING:
    from llama_serving.service.service import Service

_log = logging.getLogger(__name__)

OFF: Final = "off"


def of(settings: Settings) -> Collector | None:
    """Return the collector, and say in the log that there is one; None if collection is off.

    Raises:
        SetupError: its destination cannot be used, or a package is missing.
    """
    if settings.collect == OFF:
        return None
    known = (*settings.api_keys, *filter(None, (settings.upstream_key,)))
    redactor = Redactor(known)
    sink, most = _SINKS[settings.collect](settings)
    collector = Collector(sink, redactor, rate=min(settings.collect_rate, most))
    _log.warning("prompts and answers of %g %% of the requests are collected, redacted, to %s (LLAMA_COLLECT=%s)",
                 100 * collector.rate, collector.destination, settings.collect)  # fmt: skip
    return collector


def started(settings: Settings, load: "Callable[[], Service]") -> "Service":
    """Return the service that `load` makes, with the collector that the settings ask for.

    What cannot be used is said before the model is loaded.

    Raises:
        SetupError: as `of`; so does whatever else `load` raises.
    """
    collector = of(settings)
    if collector is None:
        return load()
    try:
        service = load()
    except BaseException:
        collector.close()
        raise
    service.collector = collector
    return service


def notice(settings: Settings, collector: Collector | None = None) -> str:
    """Return the sentence that tells users that they are collected; empty if they are not.

    Args:
        settings: of the server.
        collector: its collector, whose destination may allow a smaller share; None before there is one.
    """
    if settings.collect == OFF:
        return ""
    rate = settings.collect_rate if collector is None else collector.rate
    share = "all requests" if rate == 1 else f"{100 * rate:g} % of the requests"
    return f"Prompts and answers of {share} are collected by the operator of this server; keys and e-mail addresses of known forms are removed."


def _jsonl(settings: Settings) -> tuple[Sink, float]:
    from llama_serving.service.collection.sinks.jsonl import JsonLines

    if settings.collect_file is None:
        raise SetupError(
            "LLAMA_COLLECT=jsonl needs LLAMA_COLLECT_FILE. Set it to the path of the file to write."
        )
    if settings.audit is not None and _is_same(Path(settings.collect_file), Path(settings.audit)):
        raise SetupError(
            f"LLAMA_COLLECT_FILE={settings.collect_file} is the file of LLAMA_AUDIT. Give each a file of its own."
        )
    return JsonLines(Path(settings.collect_file), max_bytes=settings.collect_max_bytes), 1.0


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one file, by links too."""
    with suppress(OSError):
        return one.resolve() == other.resolve() or one.samefile(other)
    return False


def _azureml(settings: Settings) -> tuple[Sink, float]:
    del settings
    try:
        from llama_serving.service.collection.sinks.azureml import DataCollector
    except ImportError as error:
        raise _missing("azureml", error, "llama-endpoints[collect]") from error
    collector = DataCollector.of(os.environ)
    return collector, collector.rate


def _otlp(settings: Settings) -> tuple[Sink, float]:
    del settings
    try:
        from llama_serving.service.collection.sinks.otlp import OtlpEvents
    except ImportError as error:
        raise _missing("otlp", error, "llama-endpoints[traces]") from error
    return OtlpEvents.of(os.environ), 1.0


def _missing(destination: str, error: ImportError, extra: str) -> SetupError:
    return SetupError(
        f"LLAMA_COLLECT={destination} needs packages that are not installed ({error.name}). "
        f"Install them with: pip install '{extra}'"
    )


_SINKS: Final[Mapping[str, Callable[[Settings], tuple[Sink, float]]]] = {
    "jsonl": _jsonl,
    "azureml": _azureml,
    "otlp": _otlp,
}
"""Each with the largest share that it allows."""
