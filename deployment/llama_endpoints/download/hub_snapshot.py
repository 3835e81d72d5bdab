"""The files of a hub repository at one commit that serving needs, and the record kept beside them."""

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
"""The record of a complete folder."""
FETCHING: Final = "fetching.json"
"""The record of an incomplete folder."""
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_EXTRA_FILES: Final = (*OPTIONAL_FILES, "special_tokens_map.json")
_TEXTS: Final = ("", ".json", ".md", ".txt")  # LICENSE.md is a licence; LICENSE.py is not
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub lists it, with one of the checksums.

    Attributes:
        sha256: of files outside git (LFS), such as weights.
        git_sha1: of files in git: git's blob id.
    """

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def digest(self) -> str:
        """The checksum that applies to this file."""
        return self.sha256 or self.git_sha1 or ""

    @property
    def stated(self) -> str:
        """The checksum in words."""
        return f"sha256 {self.sha256}" if self.sha256 else f"git's sha1 {self.git_sha1}"

    def hasher(self) -> Any:
        """Return a hash object for the checksum; git hashes a header before the content."""
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    @property
    def part(self) -> str:
        """The name of the partial file while it is downloaded; it depends on the content."""
        return f".{self.name}.{self.digest[:16]}.part"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a repository at one commit."""

    repo: str
    commit: str
    files: Mapping[str, HubFile]

    @classmethod
    def of(cls, repo: str, commit: object, files: Iterable[HubFile]) -> "Snapshot":
        """Build a snapshot from the hub's answer.

        Raises:
            SetupError: the answer has no commit.
        """
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise SetupError(
                f"The hub returned no commit for {repo}. HF_ENDPOINT must be a hub with the Hugging Face API."
            )
        return cls(repo, commit, {file.name: file for file in files})

    def small(self) -> tuple[HubFile, ...]:
        """Return all files except weights: config, tokenizer, index, licences.

        Raises:
            SetupError: a required file is missing, or there are no weights to serve.
        """
        missing = [name for name in SMALL_FILES if name not in self.files]
        if missing:
            raise SetupError(
                f"{self._here} has no {' and no '.join(missing)}, which serving needs. Try another --revision."
            )
        if SINGLE not in self.files and INDEX not in self.files:
            pickles = [name for name in self.files if any(fnmatchcase(name, one) for one in PICKLES)]
            has = f" except as pickles ({', '.join(sorted(pickles)[:3])}), and loading a pickle runs whatever code is in it"
            raise SetupError(
                f"{self._here} has no safetensors weights{has if pickles else ''}. Try a --revision that has them."
            )
        extra = [file.name for file in self.files.values() if _is_extra(file)]
        index = [INDEX] if SINGLE not in self.files else []
        return tuple(self._stated(name) for name in (*SMALL_FILES, *sorted(extra), *index))

    def weights(self, shards: Iterable[str] | None) -> tuple[HubFile, ...]:
        """Return the safetensors files: the single one, or those in the index.

        Raises:
            SetupError: a file in the index does not exist.
        """
        if shards is None:
            return (self._stated(SINGLE),)
        names = tuple(shards)
        missing = [name for name in names if name not in self.files]
        if missing:
            raise SetupError(
                f"{self._here} lacks {', '.join(missing[:3])}, which its index lists. Try another --revision."
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
                f"The hub returned no size and checksum for {name} of {self.repo}, so it cannot be verified. "
                "HF_ENDPOINT must be a hub that returns them."
            )
        return file


def _is_extra(file: HubFile) -> bool:
    """Whether a file is downloaded if it exists."""
    matches = any(fnmatchcase(file.name, pattern) for pattern in _EXTRA_FILES)
    return matches and file.size > 0 and Path(file.name).suffix in _TEXTS and bool(_NAME.fullmatch(file.name))


@dataclass(frozen=True, slots=True)
class Record:
    """What a folder holds, complete or not."""

    repo: str
    commit: str
    files: tuple[HubFile, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """Return the record of `folder`, if it has one.

        Raises:
            SetupError: it is damaged.
        """
        for path in (folder / FETCHING, folder / FETCHED):
            if path.is_file():
                try:
                    return cls._of(json.loads(path.read_text(encoding="utf-8")))
                except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                    raise SetupError(
                        f"{path} is damaged. Remove it and run the same command again: existing files are verified anyway."
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
        """Write the record atomically."""
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
