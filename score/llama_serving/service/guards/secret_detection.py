"""Keys and tokens in texts, found by detect-secrets. The only file that imports it."""

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Final

from llama_serving.contract.content_filter import Finding
from llama_serving.errors import SetupError
from llama_serving.service.guards.guard import Passage

REACH: Final = 2000
"""Characters in front of the unchecked part that a key may begin in."""
NO_DEFAULT: Final = frozenset(("KeywordDetector", "IPPublicDetector", "BasicAuthDetector"))
"""Detectors that find much that is no key; they run only if they are named."""


class SecretDetection:
    """Blocks, or annotates, texts with keys.

    Args:
        name: of the guard; its findings have it.
        detectors: names of detect-secrets' classes; none means all but `NO_DEFAULT`.
        filtered: whether a key blocks.

    Raises:
        SetupError: detect-secrets is not installed, or lacks a detector.
    """

    def __init__(self, name: str, *, detectors: Sequence[str] = (), filtered: bool = True) -> None:
        known = _detectors()
        for unknown in (one for one in detectors if one not in known):
            raise SetupError(f"The guard {name} names the detector {unknown}, which detect-secrets lacks. Name some of "
                             f"{', '.join(sorted(known))}.")  # fmt: skip
        self._name, self._filtered = name, filtered
        self._detectors = [known[one]() for one in detectors or sorted(known.keys() - NO_DEFAULT)]

    def check(self, passage: Passage) -> list[Finding]:
        """See `Guard.check`."""
        lines = passage.recent(REACH).splitlines()
        kinds = [
            one.secret_type for one in self._detectors if any(any(one.analyze_string(line)) for line in lines)
        ]
        return [Finding(self._name, self._filtered, {"kinds": kinds})] if kinds else []


def _detectors() -> dict[str, Any]:
    """Return detect-secrets' classes by name, without those that need more than a line's text."""
    try:
        plugins = import_module("detect_secrets.plugins")
        base = import_module("detect_secrets.plugins.base").BasePlugin
    except ImportError as error:
        raise SetupError(
            "A guard of the type secrets needs detect-secrets. Install llama-endpoints[guards]."
        ) from error
    modules = (import_module(f"{plugins.__name__}.{one.name}") for one in iter_modules(plugins.__path__))
    return {
        name: value
        for module in modules
        if "entropy" not in module.__name__
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
        and name.endswith("Detector") and not getattr(value, "__abstractmethods__", None)
    }  # fmt: skip
