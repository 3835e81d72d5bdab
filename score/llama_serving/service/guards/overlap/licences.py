"""The licence of a corpus's file: its own SPDX line, else that of the nearest licence file above it."""

import re
from pathlib import Path
from typing import Final

_SPDX: Final = re.compile(
    r"SPDX-License-Identifier:\s*([A-Za-z0-9.+() -]{1,80}?)\s*(?:\*/|-->|$)", re.MULTILINE
)
_FILES: Final = re.compile(r"(?i)^(un)?licen[cs]e([-._].*)?$|^copying([-._].*)?$")
_PHRASES: Final = (
    ("AGPL-3.0", "GNU AFFERO GENERAL PUBLIC LICENSE"),
    ("LGPL", "GNU LESSER GENERAL PUBLIC LICENSE"),
    ("GPL-3.0", "GNU GENERAL PUBLIC LICENSE Version 3"),
    ("GPL-2.0", "GNU GENERAL PUBLIC LICENSE Version 2"),
    ("Apache-2.0", "Apache License Version 2.0"),
    ("MPL-2.0", "Mozilla Public License Version 2.0"),
    ("MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("BSD-3-Clause", "Neither the name of"),
    ("BSD-2-Clause", "Redistribution and use in source and binary forms"),
    ("ISC", "Permission to use, copy, modify, and/or distribute this software for any purpose"),
    ("Unlicense", "This is free and unencumbered software released into the public domain"),
    ("PSF-2.0", "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2"),
)
UNKNOWN: Final = "unknown"
HEAD: Final = 4000
"""Characters of a file in which an SPDX line is looked for."""


class Licences:
    """The licences of the files below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._of_folder: dict[Path, str] = {}

    def of(self, file: Path, text: str) -> str:
        """Return the SPDX identifier of a file's licence, `see NAME` for a licence that is not recognised, or `unknown`."""
        own = _SPDX.search(text[:HEAD])
        return own[1] if own else self._inherited(file.parent)

    def _inherited(self, folder: Path) -> str:
        if folder not in self._of_folder:
            above = UNKNOWN if folder == self._root else self._inherited(folder.parent)
            self._of_folder[folder] = _stated(folder, self._root) or above
        return self._of_folder[folder]


def _stated(folder: Path, root: Path) -> str | None:
    """Return the licence that a folder's own file states; None if it has none."""
    for file in sorted(folder.iterdir()):
        if _FILES.match(file.name) and file.is_file() and not file.is_symlink():
            text = " ".join(file.read_text(encoding="utf-8", errors="replace")[:20_000].split())
            named = next((name for name, phrase in _PHRASES if phrase.lower() in text.lower()), None)
            return named or f"see {file.relative_to(root).as_posix()}"
    return None
