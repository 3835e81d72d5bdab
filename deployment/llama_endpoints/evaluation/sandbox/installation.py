"""What programs see of a runtime that is installed outside `/usr`: its own files, and nothing that lies beside them."""

from pathlib import Path
from typing import Final

_HOMES: Final = (Path("/home"), Path("/Users"))


def outside_usr(*paths: Path) -> dict[str, Path]:
    """Return those files and folders that exist and that `/usr` does not have, by their paths inside."""
    return {str(path): path for path in paths if path.exists() and not path.is_relative_to("/usr")}


def personal(prefix: Path) -> bool:
    """Return whether a runtime's prefix is `/` or a home folder, where `lib` and `bin` may hold other things, too."""
    return prefix in (Path("/"), Path.home().resolve()) or prefix.parent in _HOMES
