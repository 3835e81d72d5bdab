"""The collector that the settings ask for, and what users and operators are told of it."""

import atexit
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from llama_serving.errors import SetupError
from llama_serving.service.collection.collector import Collector
from llama_serving.service.collection.redaction import Redactor
from llama_serving.service.collection.sinks.sink import Sink
from llama_serving.settings import Settings

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
    # A host may end its process without closing the service: what waits is delivered first.
    atexit.register(collector.close)
    _log.warning("prompts and answers of %g %% of the requests are collected, redacted, to %s (LLAMA_COLLECT=%s)",
                 100 * collector.rate, collector.destination, settings.collect)  # fmt: skip
    return collector


def notice(settings: Settings) -> str:
    """Return the sentence that tells users that they are collected; empty if they are not."""
    if settings.collect == OFF:
        return ""
    share = (
        "all requests" if settings.collect_rate == 1 else f"{100 * settings.collect_rate:g} % of the requests"
    )
    return f"Prompts and answers of {share} are collected by the operator of this server; keys and e-mail addresses are removed."


def _jsonl(settings: Settings) -> tuple[Sink, float]:
    from llama_serving.service.collection.sinks.jsonl import JsonLines

    if settings.collect_file is None:
        raise SetupError(
            "LLAMA_COLLECT=jsonl needs LLAMA_COLLECT_FILE. Set it to the path of the file to write."
        )
    return JsonLines(Path(settings.collect_file), max_bytes=settings.collect_max_bytes), 1.0


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
