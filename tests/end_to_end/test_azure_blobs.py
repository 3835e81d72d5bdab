"""Blobs that come in pieces, break off, change or are damaged: what is there is right in the end, or a sentence says why not."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("azure.storage.blob", reason="the extra azure is not installed")

from azure.core.credentials import AzureSasCredential

from llama_endpoints.download.azure_blobs import Blob, BlobFolder, Blobs
from llama_endpoints.download.transfer import Download
from llama_serving.errors import SetupError
from tests.support.fake_azure.storage import HOST
from tests.support.fake_azure.world import ACCOUNT, CONTAINER, FakeAzure, fake_azure
from tests.support.hubs import BreakOff, Fault, Status, Wrong

NAME = "model.safetensors"
RANGE = 1000
CONTENT = bytes(range(256)) * 18 + b"end"
SIZE = len(CONTENT)
STARTS = [0, 1000, 2000, 3000, 4000]


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAzure]:
    with fake_azure(tmp_path) as started:
        started.put("folder", {NAME: CONTENT})
        given = started.environment()
        for name in os.environ.keys() - given.keys():
            monkeypatch.delenv(name)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("time.sleep", lambda _: None)  # (the client's own pause is not to be waited for)
        yield started


@dataclass
class Coming:
    """A download of the folder, and what it told."""

    azure: FakeAzure
    folder: Path
    seen: int = 0
    said: list[str] = field(default_factory=list)

    def place(self) -> BlobFolder:
        """With a signature that is good now."""
        credential = AzureSasCredential(self.azure.storage.sign())
        return BlobFolder(f"https://{ACCOUNT}{HOST}", CONTAINER, "folder/", credential)

    def progress(self, size: int) -> None:
        self.seen += size

    def __call__(self, blobs: Blobs | None = None, files: tuple[Blob, ...] = ()) -> int:
        given = blobs or self.blobs()
        download = Download(
            given, self.folder, ours=True, progress=self.progress, tell=self.said.append, pauses=(0, 0)
        )
        return download.bring(files or given.list())

    def blobs(self) -> Blobs:
        return Blobs(self.place(), self.place, size_of_range=RANGE)

    def refused(self) -> str:
        with pytest.raises(SetupError) as error:
            self()
        return str(error.value)

    @property
    def is_right(self) -> bool:
        return [path.name for path in self.folder.iterdir()] == [NAME] and (
            self.folder / NAME
        ).read_bytes() == CONTENT


@pytest.fixture
def coming(azure: FakeAzure, tmp_path: Path) -> Coming:
    (tmp_path / "here").mkdir()
    return Coming(azure, tmp_path / "here")


def starts(azure: FakeAzure) -> list[int]:
    """Where each range began."""
    return [int(match[1]) for _, asked in azure.ranges if (match := re.fullmatch(r"bytes=(\d+)-\d*", asked))]


def test_it_comes_in_ranges_that_are_checked(azure: FakeAzure, coming: Coming) -> None:
    assert coming() == SIZE == coming.seen
    assert coming.is_right
    assert starts(azure) == STARTS
    assert azure.sent[NAME] == SIZE


@pytest.mark.parametrize(
    ("faults", "again", "sent"),
    [
        pytest.param([None, None, BreakOff(10)], [2000], SIZE + 10, id="breaks off"),
        pytest.param([BreakOff(0)], [0], SIZE, id="breaks off at once"),
        pytest.param([None, Status(503)], [1000], SIZE, id="503"),
        pytest.param([None, Status(500), Status(502)], [1000, 1000], SIZE, id="again and again"),
        pytest.param([None, Wrong()], [1000], SIZE + RANGE, id="damaged on the way"),
    ],
)
def test_it_goes_on_where_it_ended(
    azure: FakeAzure, coming: Coming, faults: list[Fault | None], again: list[int], sent: int
) -> None:
    azure.faults[NAME] = faults
    assert coming() == SIZE == coming.seen
    assert coming.is_right
    assert starts(azure) == sorted(STARTS + again)
    assert azure.sent[NAME] == sent


def test_a_later_call_goes_on(azure: FakeAzure, coming: Coming) -> None:
    azure.faults[NAME] = [None, None, *[Status(503)] * 4]
    assert f"Cannot download {NAME}: Azure answered 503, 3 times in a row. Progress is kept" in coming.refused()
    (part,) = coming.folder.iterdir()
    assert part.stat().st_size == 2 * RANGE
    azure.ranges.clear()
    assert coming() == SIZE - 2 * RANGE
    assert starts(azure) == STARTS[2:]
    assert azure.sent[NAME] == SIZE
    assert coming.is_right


def test_a_changed_blob_is_not_mixed_in(azure: FakeAzure, coming: Coming) -> None:
    blobs = coming.blobs()
    files = blobs.list()
    azure.faults[NAME] = [None, None, *[Status(503)] * 4]
    with pytest.raises(SetupError, match="Cannot download"):
        coming(blobs, files)
    azure.put("folder", {NAME: CONTENT[::-1]})
    with pytest.raises(
        SetupError, match=f"{NAME} was changed in Azure while it was being downloaded. Run the same"
    ):
        coming(blobs, files)
    assert coming() == SIZE
    assert (coming.folder / NAME).read_bytes() == CONTENT[::-1]


def test_another_checksum_than_is_stated(azure: FakeAzure, coming: Coming) -> None:
    azure.put("folder", {NAME: CONTENT}, md5=b"\x00" * 16)
    assert coming.refused().startswith(
        f"{NAME} did not match the checksum of Azure (MD5 {'00' * 16}), and was removed."
    )
    assert not list(coming.folder.iterdir())


def test_without_a_checksum_the_ranges_own_must_do(azure: FakeAzure, coming: Coming) -> None:
    azure.put("folder", {NAME: CONTENT}, md5=None)
    azure.faults[NAME] = [None, Wrong()]
    coming()
    assert coming.is_right
    assert coming() == 0
    assert coming.seen == 2 * SIZE


class TestRights:
    def test_what_expires_is_asked_for_again(self, azure: FakeAzure, coming: Coming) -> None:
        blobs = coming.blobs()
        files = blobs.list()
        azure.storage.signatures.clear()
        assert coming(blobs, files) == SIZE
        assert coming.said == [f"{NAME}: Azure answered 403, since the credential expired; retrying in 0 s."]
        assert coming.is_right
        assert azure.storage.issued == 2

    def test_in_the_middle_as_well(self, azure: FakeAzure, coming: Coming) -> None:
        azure.faults[NAME] = [None, None, Status(403)]
        assert coming() == SIZE
        assert azure.sent[NAME] == SIZE
        assert azure.storage.issued == 2

    def test_what_never_worked_is_not(self, azure: FakeAzure, coming: Coming) -> None:
        azure.faults["list"] = [Status(403)]
        assert coming.refused().startswith(
            f"Permission denied for https://{ACCOUNT}{HOST}/{CONTAINER} (403 Because). Ask for"
        )
        assert azure.storage.issued == 1

    def test_the_new_one_may_be_refused_too(self, azure: FakeAzure, coming: Coming) -> None:
        azure.faults[NAME] = [None, Status(403), Status(403)]
        assert "(403 Because)" in coming.refused()
        assert coming() == SIZE - RANGE

    def test_nobodys_secret_is_shown(self, coming: Coming) -> None:
        place = coming.place()
        assert "credential" not in repr(place)
        assert "sig" not in repr(place)
