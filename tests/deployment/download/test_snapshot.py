"""Which of a repository's files are fetched, and the record beside them."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.download.hub_snapshot import FETCHED, FETCHING, HubFile, Record, Snapshot
from llama_serving.errors import SetupError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256, SHA1 = "ab" * 32, "cd" * 20
NEEDED = ("config.json", "tokenizer.json", "model.safetensors")


def small(name: str, size: int = 1) -> HubFile:
    return HubFile(name, size, git_sha1=SHA1)


def large(name: str, size: int = 1) -> HubFile:
    return HubFile(name, size, sha256=SHA256)


def snapshot(*names: str) -> Snapshot:
    return Snapshot.of("a/b", COMMIT, [large(name) if "safetensors" in name else small(name) for name in names])


def chosen(*names: str) -> list[str]:
    return [file.name for file in snapshot(*NEEDED, *names).small()]


@pytest.mark.parametrize(
    "name",
    ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "LICENSE", "LICENSE.txt", "NOTICE",
     "USE_POLICY.md", "quantize_config.json", "quant_config.json"],
)  # fmt: skip
def test_what_is_worth_having_comes_too(name: str) -> None:
    assert chosen(name) == ["config.json", "tokenizer.json", name]


@pytest.mark.parametrize(
    "name",
    ["README.md", ".gitattributes", "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth",
     "modeling_llama.py", "LICENSE.py", "LICENSE.bin", "tokenizer.model", "training_args.bin", "optimizer.pt", "x.pkl",
     "original/config.json", "original/LICENSE", "LICENSE/x.txt", "../LICENSE", "onnx/model.safetensors", "LICENSE (2).txt",
     "adapter_model.safetensors", "config.json.bak", "model.ckpt"],
)  # fmt: skip
def test_nothing_else_ever_comes(name: str) -> None:
    assert chosen(name) == ["config.json", "tokenizer.json"]


def test_an_empty_file_that_is_not_needed_is_left_out() -> None:
    files = [*map(small, NEEDED[:2]), large(NEEDED[2]), small("NOTICE", 0)]
    assert "NOTICE" not in [file.name for file in Snapshot.of("a/b", COMMIT, files).small()]


class TestWeights:
    def test_the_single_file_comes_before_the_shards(self) -> None:
        both = snapshot(*NEEDED, "model.safetensors.index.json", "model-1-of-1.safetensors")
        assert [file.name for file in both.small()] == ["config.json", "tokenizer.json"]
        assert [file.name for file in both.weights(None)] == ["model.safetensors"]

    def test_the_index_comes_with_the_small_files(self) -> None:
        sharded = snapshot(*NEEDED[:2], "model.safetensors.index.json", "a.safetensors", "b.safetensors")
        assert [file.name for file in sharded.small()][-1] == "model.safetensors.index.json"
        assert [file.name for file in sharded.weights(["b.safetensors"])] == ["b.safetensors"]

    def test_a_shard_that_is_not_there(self) -> None:
        with pytest.raises(SetupError, match=r"a/b at 0123456789ab lacks b.safetensors, which its index lists"):
            snapshot(*NEEDED, "a.safetensors").weights(["a.safetensors", "b.safetensors"])


@pytest.mark.parametrize(
    "file",
    [
        HubFile("config.json", 0, git_sha1=SHA1),
        HubFile("config.json", 1),
        HubFile("config.json", 1, git_sha1="None"),
        HubFile("config.json", 1, sha256=SHA1),
    ],
)
def test_what_can_not_be_verified_is_refused(file: HubFile) -> None:
    with pytest.raises(SetupError, match=r"The hub returned no size and checksum for config.json of a/b"):
        Snapshot.of("a/b", COMMIT, [file, small("tokenizer.json"), large("model.safetensors")]).small()


@pytest.mark.parametrize("commit", [None, "main", COMMIT.upper(), COMMIT[:-1], 7])
def test_a_commit_is_needed(commit: object) -> None:
    with pytest.raises(SetupError, match=r"The hub returned no commit for a/b"):
        Snapshot.of("a/b", commit, [])


def test_other_content_has_another_part() -> None:
    one, other = large("model.safetensors"), HubFile("model.safetensors", 1, sha256="ba" * 32)
    assert one.part != other.part
    assert one.part == ".model.safetensors.abababababababab.part"


class TestRecord:
    @given(
        st.lists(
            st.builds(
                HubFile,
                st.from_regex(r"[a-z][a-z.-]{0,20}", fullmatch=True),
                st.integers(1, 2**40),
                st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
            )
            | st.builds(
                HubFile,
                st.from_regex(r"[a-z][a-z.-]{0,20}", fullmatch=True),
                st.integers(1, 2**40),
                git_sha1=st.from_regex(r"[0-9a-f]{40}", fullmatch=True),
            ),
            unique_by=lambda file: file.name,
            max_size=5,
        ),
        st.booleans(),
    )
    def test_it_comes_back(
        self, tmp_path_factory: pytest.TempPathFactory, files: list[HubFile], whole: bool
    ) -> None:
        folder = tmp_path_factory.mktemp("record")
        record = Record("a/b", COMMIT, tuple(files))
        record.write(folder, whole=whole)
        assert Record.read(folder) == record

    def test_only_one_of_its_two_names_is_there(self, tmp_path: Path) -> None:
        record = Record("a/b", COMMIT, (large("model.safetensors"),))
        assert Record.read(tmp_path) is None
        for whole, name in ((False, FETCHING), (True, FETCHED), (False, FETCHING), (True, FETCHED)):
            record.write(tmp_path, whole=whole)
            assert [path.name for path in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{}", "null", '{"repo": "a", "commit": "b", "files": []}',
         '{"repo": "a", "commit": "b", "files": {"x": 1}}', '{"repo": "a", "commit": "b", "files": {"x": {"size": "y"}}}'],
    )  # fmt: skip
    def test_a_damaged_one_is_said(self, tmp_path: Path, text: str) -> None:
        (tmp_path / FETCHED).write_text(text)
        with pytest.raises(SetupError, match=re.escape(f"{tmp_path}/fetched.json is damaged. Remove it")):
            Record.read(tmp_path)

    def test_what_it_says(self, tmp_path: Path) -> None:
        Record("a/b", COMMIT, (large("w", 5), small("s", 6))).write(tmp_path, whole=True)
        assert json.loads((tmp_path / FETCHED).read_text()) == {
            "repo": "a/b",
            "commit": COMMIT,
            "files": {"w": {"size": 5, "sha256": SHA256}, "s": {"size": 6, "git_sha1": SHA1}},
        }
