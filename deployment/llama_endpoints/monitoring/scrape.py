"""One reading of `/metrics`: samples by name and labels."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

READY = "llama_ready"
"""A metric that our server always has."""
STARTED = "llama_time_to_first_token_seconds_created"
"""When the counters of a server began, in seconds since 1970."""

MOST = 2.0**80
"""No value of a server is larger."""


class NotOurs(ValueError):
    """The text is not what our server has at `/metrics`. The message says what it is, as half a sentence."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of `/metrics`."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Scrape:
    """One reading.

    Attributes:
        at: when it was read, in seconds of `time.monotonic()`.
        samples: all of them, as the server orders them.
    """

    at: float
    samples: tuple[Sample, ...]

    @classmethod
    def parse(cls, text: str, at: float) -> "Scrape":
        """Read Prometheus' text format.

        Raises:
            NotOurs: it is another text, or of another server.
        """
        try:
            families = tuple(text_string_to_metric_families(text))
        except (ValueError, LookupError) as error:
            raise NotOurs("what it has at /metrics is no text of Prometheus") from error
        found = tuple(
            Sample(one.name, one.labels, float(one.value))
            for family in families
            for one in family.samples
            if abs(one.value) < MOST  # (also drops what is no number)
        )
        if not any(one.name == READY for one in found):
            vllm = any(one.name.startswith("vllm:") for one in found)
            raise NotOurs("it is vLLM itself" if vllm else f"it has no metric {READY}")
        return cls(at, found)

    def only(self, **labels: Collection[str]) -> "Scrape":
        """Return the samples whose labels have these values. The start of the server is kept."""

        def fits(one: Sample) -> bool:
            return all(one.labels.get(label) in values for label, values in labels.items())

        return Scrape(self.at, tuple(one for one in self.samples if one.name == STARTED or fits(one)))

    def value(self, name: str) -> float | None:
        """Return the sum over all labels of a metric; None if there is no sample."""
        found = [one.value for one in self.of(name)]
        return sum(found) if found else None

    def of(self, name: str) -> Iterator[Sample]:
        """Yield the samples of a metric."""
        return (one for one in self.samples if one.name == name)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the values of a metric by one label, summed over the others."""
        sums: dict[str, float] = {}
        for one in self.of(name):
            where = one.labels.get(label, "")
            sums[where] = sums.get(where, 0.0) + one.value
        return sums
