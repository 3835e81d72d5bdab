"""Where torch is not installed, what needs it is skipped, module by module and test by test: `make test-pythons` runs the rest."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any, Final

import pytest

MISSING: Final = frozenset(
    name for name in ("torch", "transformers", "accelerate", "peft") if find_spec(name) is None
)


def missing_in(error: BaseException | None) -> str | None:
    """The one of these libraries that an error is about, or that an error is about which it came of."""
    return next((name for one in _chain(error) if (name := _missing(one)) is not None), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _missing(error: BaseException) -> str | None:
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return name if name in MISSING else None


class Module(pytest.Module):
    """A file of tests; skipped where it imports what is missing."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return list(super().collect())
        except self.CollectError as error:
            if (name := missing_in(error)) is None:
                raise
            pytest.skip(f"{name} is not installed", allow_module_level=True)


def skipped(report: pytest.TestReport, call: Any) -> pytest.TestReport:
    """A report of what failed for want of these libraries as one of what was skipped."""
    if MISSING and report.failed and (name := missing_in(call.excinfo.value)) is not None:
        report.outcome = "skipped"
        report.longrepr = (str(report.fspath), 0, f"Skipped: {name} is not installed")
    return report
