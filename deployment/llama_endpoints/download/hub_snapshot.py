"""The files of a model at one commit of a hub, those that serving needs, and the record that is kept beside them."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from llama_endpoints.checkpoints.file_patterns import OPTIONAL_FILES, PICKLES, SMALL_FILES
from llama_serving.errors import SetupError

FETCHED: Final = "fetched.json"
"""The record of a folder that holds all of it."""
FETCHING: Final = "fetching.json"
"""The record of a folder that some of it is still to come into."""
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_EXTRA_FILES: Final = (*OPTIONAL_FILES, "special_tokens_map.json")
_TEXTS: Final = ("", ".json", ".md", ".txt")  # a licence may be called LICENSE.md, and hardly LICENSE.py
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub states it; one of the checksums is there.

    Attributes:
        sha256: of what is kept outside of git (LFS), the weights.
        git_sha1: of what is in git itself: git's own name of the content.
    """

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def digest(self) -> str:
        """The checksum that holds for this file."""
        return self.sha256 or self.git_sha1 or ""

    @property
    def stated(self) -> str:
        """The checksum in words."""
        return f"sha256 {self.sha256}" if self.sha256 else f"git's sha1 {self.git_sha1}"

    def hasher(self) -> Any:
        """What the checksum is computed by; git puts a line in front of a file's content."""
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    @property
    def part(self) -> str:
        """The name of what is there of it while it comes in; another content's has another name."""
        return f".{self.name}.{self.digest[:16]}.part"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a repository at one commit."""

    repo: str
    commit: str
    files: Mapping[str, HubFile]

    @classmethod
    def of(cls, repo: str, commit: object, files: Iterable[HubFile]) -> "Snapshot":
        """What a hub has said.

        Raises:
            SetupError: it names no commit.
        """
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise SetupError(
                f"The hub names no commit of {repo}. HF_ENDPOINT must name a hub that has its API."
            )
        return cls(repo, commit, {file.name: file for file in files})

    def small(self) -> tuple[HubFile, ...]:
        """Everything but the weights: config, tokenizer, the index, licences.

        Raises:
            SetupError: one that is needed is missing, or there are no weights to serve.
        """
        missing = [name for name in SMALL_FILES if name not in self.files]
        if missing:
            raise SetupError(
                f"{self._here} has no {' and no '.join(missing)}, which serving needs. Try another --revision."
            )
        if SINGLE not in self.files and INDEX not in self.files:
            pickles = [name for name in self.files if any(fnmatchcase(name, one) for one in PICKLES)]
            has = f" but as pickles ({', '.join(sorted(pickles)[:3])}), and loading a pickle runs whatever code is in it"
            raise SetupError(
                f"{self._here} has no weights as safetensors{has if pickles else ''}. Try a --revision that has them."
            )
        extra = [file.name for file in self.files.values() if _is_extra(file)]
        index = [INDEX] if SINGLE not in self.files else []
        return tuple(self._stated(name) for name in (*SMALL_FILES, *sorted(extra), *index))

    def weights(self, shards: Iterable[str] | None) -> tuple[HubFile, ...]:
        """The safetensors files: the single one, or those that the index names.

        Raises:
            SetupError: the index names one that is not there.
        """
        if shards is None:
            return (self._stated(SINGLE),)
        names = tuple(shards)
        missing = [name for name in names if name not in self.files]
        if missing:
            raise SetupError(
                f"{self._here} lacks {', '.join(missing[:3])}, which its index names. Try another --revision."
            )
        return tuple(self._stated(name) for name in names)

    @property
    def _here(self) -> str:
        return f"{self.repo} at {self.commit[:12]}"

    def _stated(self, name: str) -> HubFile:
        file = self.files[name]
        good = file.size > 0 and (_SHA256 if file.sha256 else _COMMIT).fullmatch(file.digest)
        if not good or not _NAME.fullmatch(name):
            raise SetupError(
                f"The hub states no size and checksum of {self.repo}'s {name}, so it can't be verified. "
                "HF_ENDPOINT must name a hub that does."
            )
        return file


def _is_extra(file: HubFile) -> bool:
    """Worth having where it is there."""
    wanted = any(fnmatchcase(file.name, pattern) for pattern in _EXTRA_FILES)
    return wanted and file.size > 0 and Path(file.name).suffix in _TEXTS and bool(_NAME.fullmatch(file.name))


@dataclass(frozen=True, slots=True)
class Record:
    """What a folder holds, or is being filled with."""

    repo: str
    commit: str
    files: tuple[HubFile, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """The record of `folder`, where it has one.

        Raises:
            SetupError: it is damaged.
        """
        for path in (folder / FETCHING, folder / FETCHED):
            if path.is_file():
                try:
                    return cls._of(json.loads(path.read_text(encoding="utf-8")))
                except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                    raise SetupError(
                        f"{path} is damaged. Remove it and run the same command again: what is there is verified anyway."
                    ) from error
        return None

    @classmethod
    def _of(cls, value: Any) -> "Record":
        files = (
            HubFile(str(name), int(said["size"]), said.get("sha256"), said.get("git_sha1"))
            for name, said in value["files"].items()
        )
        return cls(str(value["repo"]), str(value["commit"]), tuple(files))

    def write(self, folder: Path, *, whole: bool) -> None:
        """Put it into `folder`, all or nothing."""
        files = {
            file.name: {"size": file.size}
            | ({"sha256": file.sha256} if file.sha256 else {"git_sha1": file.git_sha1})
            for file in self.files
        }
        text = json.dumps({"repo": self.repo, "commit": self.commit, "files": files}, indent=1)
        stage, fetching = folder / f".{FETCHING}", folder / FETCHING
        stage.write_text(text + "\n", encoding="utf-8")
        if whole:
            stage.replace(folder / FETCHED)
            fetching.unlink(missing_ok=True)
        else:
            stage.replace(fetching)
            (folder / FETCHED).unlink(missing_ok=True)
