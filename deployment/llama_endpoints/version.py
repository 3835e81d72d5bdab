"""The version of this package, with its commit where one is known."""

from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent


def full_version() -> str:
    """Return the version, such as `0.1.0 (1a2b3c4)`; the version alone where no commit is known."""
    from importlib.metadata import version

    number, known = version("llama-endpoints"), commit()
    return f"{number} ({known})" if known else number


def commit(package: Path = _PACKAGE) -> str:
    """Return the short commit: from the build's record in a wheel, from git in a checkout, else an empty text."""
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
