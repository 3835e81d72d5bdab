"""Hatchling's build hook: records the commit in the wheel and the sdist, so that `--version` can tell it."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

RECORD = "llama_endpoints/commit.txt"
"""Where llama_endpoints/version.py looks for it."""


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """Writes the checkout's commit beside the package; without git it passes on what an sdist recorded."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the record to a wheel or an sdist; an editable install asks git each time."""
        commit = "" if version == "editable" else _commit(Path(self.root))
        if not commit:
            return
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "commit.txt"
        file.write_text(f"{commit}\n", encoding="utf-8")
        inside = RECORD if self.target_name == "wheel" else f"deployment/{RECORD}"
        build_data["force_include"][str(file)] = inside


def _commit(root: Path) -> str:
    if not (root / ".git").exists():
        return ""  # (an sdist: its record is a file of the package already)
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
