"""The version of this package, with its commit where one is known."""

from pathlib import Path
from typing import Final

from llama_serving import version as builds

_PACKAGE: Final = Path(__file__).resolve().parent


def full_version() -> str:
    """Return the version, such as `0.1.0 (1a2b3c4)`; the version alone where no commit is known."""
    from importlib.metadata import version

    number, known = version("llama-endpoints"), commit()
    return f"{number} ({known})" if known else number


def commit(package: Path = _PACKAGE) -> str:
    """See `llama_serving.version.commit`."""
    return builds.commit(package)
