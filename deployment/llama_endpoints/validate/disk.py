"""Whether something is there. A name that no disk could have (too long, with NUL) is not there."""

from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether there is a file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Whether there is a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """Whether there is anything."""
    return is_file(path) or is_dir(path)
