"""What was seen of a server, in words, in one line, and as JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from llama_endpoints.monitoring.look import Look
from llama_endpoints.monitoring.overview import KeyUse, Latency, Overview

UNKNOWN: Final = "-"
KEY_HEADER: Final = ("KEY", "REQUESTS/S", "ERRORS/S", "TOKENS/S", "REQUESTS", "TOKENS")
LINE_HEADER: Final = (
    "TIME", "STATE", "RUNNING", "WAITING", "REQUESTS/S", "ERRORS/S", "GENERATED/S", "PROMPT/S", "KV", "FIRST", "TOKEN",
)  # fmt: skip
_LONGEST: Final = 64
_MILLISECONDS: Final = 0.1
"""Below this, durations are shown in milliseconds."""


def facts(seen: Overview) -> list[tuple[str, str]]:
    """Return what is said of a server: headings, and a sentence for each."""
    return [
        ("model", ", ".join(part for part in (printable(seen.model), printable(seen.engine), seen.state) if part)),
        ("requests", _requests(seen)),
        ("tokens", f"{number(seen.generated_tokens_per_second)}/s generated, {number(seen.prompt_tokens_per_second)}/s of prompts"),
        ("cache", _cache(seen)),
        ("latency", f"first token {_latency(seen.first_token)}, each further one {_latency(seen.output_token)}"),
    ]  # fmt: skip


def key_cells(use: KeyUse) -> list[str]:
    """Return the row of a key, as `KEY_HEADER` names its cells."""
    return [
        printable(use.name),
        number(use.requests_per_second),
        number(use.errors_per_second),
        number(use.tokens_per_second),
        f"{use.requests:,}",
        f"{use.tokens:,}",
    ]


def header() -> str:
    """Return the names of what `line` shows."""
    return _aligned(LINE_HEADER)


def line(look: Look) -> str:
    """Return one line: a server, or why it does not answer."""
    time, seen = look.at.strftime("%H:%M:%S"), look.overview
    if seen is None:
        return f"{time}  {look.problem}"
    errors = None if seen.requests_per_second is None else sum(seen.refusals.values())
    return _aligned(
        (
            time, seen.state, count(seen.running), count(seen.waiting), number(seen.requests_per_second), number(errors),
            number(seen.generated_tokens_per_second), number(seen.prompt_tokens_per_second), percent(seen.kv_cache),
            seconds(seen.first_token.p50), seconds(seen.output_token.p50),
        )
    )  # fmt: skip


def value(look: Look) -> dict[str, Any]:
    """Return everything, for JSON."""
    at = look.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    whole: Mapping[str, Any] = (
        {"state": "away", "problem": look.problem} if look.overview is None else asdict(look.overview)
    )
    return {"time": at, "url": look.url, **whole}


def printable(text: str | None) -> str:
    """Return a server's word, without what a terminal would obey."""
    return "".join(one if one.isprintable() else "�" for one in (text or "")[:_LONGEST])


def count(value: int | None) -> str:
    """Return a whole number."""
    return UNKNOWN if value is None else f"{value:,}"


def number(value: float | None) -> str:
    """Return a rate: whole above 100, with one digit after the point below."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}" if value >= 0.05 else "<0.1"


def percent(share: float | None) -> str:
    """Return a share."""
    return UNKNOWN if share is None else f"{share:.0%}"


def seconds(value: float | None) -> str:
    """Return a duration."""
    if value is None:
        return UNKNOWN
    return (
        f"{value * 1e3:.0f} ms"
        if value < _MILLISECONDS
        else f"{value:.2f} s"
        if value < 10
        else f"{value:.0f} s"
    )


def _requests(seen: Overview) -> str:
    refused = ", ".join(f"{number(rate)}/s with {code}" for code, rate in seen.refusals.items())
    said = f"{count(seen.running)} running, {count(seen.waiting)} waiting, {number(seen.requests_per_second)}/s answered"
    return f"{said}; errors: {refused}" if refused else said


def _cache(seen: Overview) -> str:
    return ", ".join(_cache_parts(seen))


def _cache_parts(seen: Overview) -> Iterator[str]:
    yield (
        "KV cache not known" if seen.kv_cache is None else f"{percent(seen.kv_cache)} of the KV cache in use"
    )
    yield f"{percent(seen.prefix_hits)} of prompt tokens reused"
    yield f"{number(seen.preemptions_per_second)}/s preemptions"


def _latency(found: Latency) -> str:
    return f"{seconds(found.p50)} (p95 {seconds(found.p95)})"


def _aligned(cells: tuple[str, ...]) -> str:
    first, second, *others = cells
    widths = [max(len(name), 7) for name in LINE_HEADER[2:]]
    numbers = (cell.rjust(width) for cell, width in zip(others, widths, strict=True))
    return "  ".join([first.ljust(8), second.ljust(9), *numbers])
