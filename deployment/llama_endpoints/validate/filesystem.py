"""Whether paths exist. A path that no file system can have (too long, or with NUL) does not exist."""

from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether the file exists."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Whether the folder exists."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """Whether the path exists."""
    return is_file(path) or is_dir(path)
