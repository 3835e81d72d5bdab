"""What `top` says of a server, from the metrics that the real one has."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.monitoring import words
from llama_endpoints.monitoring.changes import Changes
from llama_endpoints.monitoring.client import Away
from llama_endpoints.monitoring.monitor import Monitor
from llama_endpoints.monitoring.overview import LOADING, NOT_READY, READY, Overview
from llama_endpoints.monitoring.scrape import Sample, Scrape
from llama_serving.errors import SetupError
from llama_serving.service.service import Service

INFO = {"engine": "batching", "backend": "native", "model": "nano"}


def scrape(at: float, *samples: tuple[str, Mapping[str, str], float]) -> Scrape:
    return Scrape(at, tuple(Sample(*one) for one in samples))


def overview(*samples: tuple[str, Mapping[str, str], float]) -> Overview:
    return Overview.of(Changes(None, scrape(1, *samples)))


@pytest.mark.parametrize(
    ("samples", "state"),
    [
        ([("llama_ready", {}, 0.0)], LOADING),
        ([("llama_ready", {}, 1.0), ("llama_engine_info", INFO, 1.0)], READY),
        ([("llama_ready", {}, 0.0), ("llama_engine_info", INFO, 1.0)], NOT_READY),
    ],
)
def test_the_state_is_told(samples: list[tuple[str, Mapping[str, str], float]], state: str) -> None:
    assert overview(*samples).state == state


def test_what_a_loading_server_does_not_have_is_said_to_be_unknown() -> None:
    seen = overview(("llama_ready", {}, 0.0))
    assert (seen.model, seen.running, seen.kv_cache, seen.keys) == (None, None, None, ())
    said = dict(words.facts(seen))
    assert said["model"] == "loading"
    assert said["requests"] == "- running, - waiting, -/s answered"
    assert said["cache"].startswith("KV cache not known")


def test_only_routes_that_generate_are_counted() -> None:
    def at(second: float, *counts: float) -> Scrape:
        asked = zip(
            (("/v1/completions", "200"), ("/score", "200"), ("/score", "429"), ("/health", "503"), ("/metrics", "200")),
            counts,
            strict=True,
        )  # fmt: skip
        return scrape(
            second,
            ("llama_ready", {}, 1.0),
            *(("llama_requests_total", {"route": r, "code": c}, n) for (r, c), n in asked),
        )

    seen = Overview.of(Changes(at(1, 0, 0, 0, 0, 0), at(3, 4, 2, 1, 50, 50)))
    assert seen.requests_per_second == 3.5
    assert seen.refusals == {"429": 0.5}
    assert "errors: 0.5/s with 429" in dict(words.facts(seen))["requests"]


def test_the_busiest_key_comes_first_and_then_who_used_most() -> None:
    def at(second: float, **tokens: float) -> Scrape:
        found = (
            sample
            for key, count in tokens.items()
            for sample in (
                ("llama_key_requests_total", {"key": key}, count / 10),
                ("llama_key_prompt_tokens_total", {"key": key}, count),
                ("llama_key_completion_tokens_total", {"key": key}, 0.0),
            )
        )
        return scrape(second, ("llama_ready", {}, 1.0), *found)

    seen = Overview.of(Changes(at(1, old=500, older=900, busy=10), at(2, old=500, older=900, busy=30, new=5)))
    assert [use.name for use in seen.keys] == ["busy", "new", "older", "old"]
    assert [use.tokens_per_second for use in seen.keys] == [20, 5, 0, 0]
    assert words.key_cells(seen.keys[0]) == ["busy", "2.0", "0", "20.0", "3", "30"]


@given(st.text())
def test_no_word_of_a_server_reaches_the_terminal_as_a_command(text: str) -> None:
    said = words.printable(text)
    assert said.isprintable() or not said
    assert len(said) <= 64


@given(st.one_of(st.none(), st.floats(0, 1e12)))
def test_numbers_are_short(value: float | None) -> None:
    assert 0 < len(words.number(value)) <= 17
    assert (words.number(value) == words.UNKNOWN) == (value is None)
    assert len(words.seconds(None if value is None else value % 1000)) <= 6


def test_a_value_that_is_no_number_is_unknown() -> None:
    text = "llama_ready 1\nllama_num_requests_running NaN\nllama_num_requests_waiting 2\n"
    seen = Overview.of(Changes(None, Scrape.parse(text, 0)))
    assert (seen.running, seen.waiting) == (None, 2)


class Script:
    """A client whose answers are given."""

    url = "http://127.0.0.1:1"

    def __init__(self, *answers: Scrape | Exception) -> None:
        self._answers = iter(answers)

    def read(self) -> Scrape:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_rates_go_on_where_the_server_answered_last() -> None:
    def at(second: float, tokens: float) -> Scrape:
        return scrape(second, ("llama_ready", {}, 1.0), ("llama_generation_tokens_total", {}, tokens))

    refused = SetupError("a key is needed.")
    monitor = Monitor(Script(at(0, 5), Away("gone."), refused, at(10, 105)))  # type: ignore[arg-type]
    looks = [monitor.first(), *(monitor.again() for _ in range(3))]
    assert [look.problem for look in looks] == [None, "gone.", "a key is needed.", None]
    assert looks[-1].overview is not None
    assert looks[-1].overview.generated_tokens_per_second == 10


def test_a_refusal_at_the_first_look_is_an_error_and_absence_is_not() -> None:
    assert Monitor(Script(Away("gone."))).first().problem == "gone."  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="a key"):
        Monitor(Script(SetupError("a key is needed."))).first()  # type: ignore[arg-type]


def test_a_server_whose_cache_is_elsewhere_says_nothing_of_it(service: Service) -> None:
    """vLLM and upstream servers have their cache in another process."""
    from dataclasses import replace
    from types import SimpleNamespace

    from llama_serving.server.lifecycle import Phase
    from llama_serving.server.metrics import Metrics

    stats = service.engine.stats()
    for blocks in (stats.kv_blocks, 0):
        engine = SimpleNamespace(stats=lambda blocks=blocks: replace(stats, kv_blocks=blocks))
        loaded = SimpleNamespace(
            engine=engine,
            requests=lambda: (0, 0),
            variant=service.variant,
            guards=service.guards,
            collector=None,
        )
        text = Metrics(SimpleNamespace(phase=Phase.READY, loaded=loaded)).text().decode()  # type: ignore[arg-type]
        seen = Overview.of(Changes(None, Scrape.parse(text, 0)))
        assert (seen.kv_cache is not None) == (blocks > 0)
        assert (seen.state, seen.model) == (READY, "nano")
