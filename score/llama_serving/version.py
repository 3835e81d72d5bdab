"""The version of these packages, with the commit where one is known."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent
RECORD: Final = "build.json"
"""In a packaged model's copy of the code, which is not installed: what packaged it."""


@dataclass(frozen=True, slots=True)
class Build:
    """What the code was built from; a commit that is not known is empty."""

    version: str
    commit: str


@cache
def build(package: Path = _PACKAGE) -> Build:
    """Return the build of this code. The first call may start git."""
    record = package / RECORD
    if record.is_file():
        return Build(**json.loads(record.read_text(encoding="utf-8")))
    try:
        number = version("llama-endpoints")
    except PackageNotFoundError:
        return Build("", "")
    return Build(number, commit(package.parent / "llama_endpoints"))


def write_record(package: Path) -> None:
    """Record this code's build in a copy of the package."""
    (package / RECORD).write_text(json.dumps(asdict(build())), encoding="utf-8")


def commit(package: Path) -> str:
    """Return the short commit: from the record of a wheel's build, from git in a checkout, else an empty text."""
    record = package / "commit.txt"  # (hatch_build.py writes it)
    if record.is_file():
        return record.read_text(encoding="utf-8").strip()
    checkout = package.parents[1]
    if not (checkout / ".git").exists() or not (checkout / "pyproject.toml").is_file():
        return ""
    import subprocess

    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607  (the git of whoever works on the checkout)
            cwd=checkout, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
