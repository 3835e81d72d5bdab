"""GGUF files that are damaged, hostile or hold another model: one sentence each."""

import os
import re
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_endpoints.checkpoints.gguf_file import GgufFile
from llama_endpoints.checkpoints.gguf_package import GgufModel
from llama_serving.errors import SetupError
from tests.support import ggufs, llamas
from tests.support.ggufs import Kind, entry, string, tensor

V = gguf.GGUFValueType
METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": (
        {"general.architecture": ("qwen2", V.STRING)},
        "has general.architecture 'qwen2'; only 'llama'",
    ),
    "an adapter": ({"general.type": ("adapter", V.STRING)}, "has general.type 'adapter'; only 'model' is"),
    "a part": ({"split.count": (3, V.UINT16)}, "is one of 3 parts. Join them first: llama-gguf-split"),
    "no architecture": ({"general.architecture": None}, "lacks general.architecture; only 'llama' is served"),
    "other blocks": ({"general.quantization_version": (1, V.UINT32)}, "quantization_version 1; only 2 is"),
    "experts": ({"llama.expert_count": (8, V.UINT32)}, "llama.expert_count 8; only 0 is served"),
    "yarn": ({"llama.rope.scaling.type": ("yarn", V.STRING)}, "'yarn'; only 'none' or 'linear' is served"),
    "an unknown key": ({"llama.logit_scale": (2.0, V.FLOAT32)}, "has llama.logit_scale, which no model"),
    "no context": ({"llama.context_length": None}, "lacks llama.context_length; a positive integer"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, "rms_epsilon; a positive number"),
    "no layers": ({"llama.block_count": (0, V.UINT32)}, "llama.block_count 0; a positive integer is needed"),
    "too many layers": ({"llama.block_count": (2**31 - 1, V.UINT32)}, "2147483647, but only 21 tensors"),
    "more layers": ({"llama.block_count": (1, V.UINT32)}, r"has the tensor blk\.1\.\S+, which no Llama has"),
    "a negative size": ({"llama.embedding_length": (-5, V.INT32)}, "-5; a positive integer"),
    "a text for a size": ({"llama.embedding_length": ("x" * 99, V.STRING)}, "length 'x{39}…; a positive"),
    "heads that do not divide": ({"llama.attention.head_count": (3, V.UINT32)}, "each must be a multiple"),
    "another width": ({"llama.feed_forward_length": (513, V.UINT32)}, r"ffn_gate.weight, .* \(513, 256\)"),
    "partly rotary": ({"llama.rope.dimension_count": (32, V.UINT32)}, "heads of 64, .* turns 32; these"),
    "an infinite theta": ({"llama.rope.freq_base": (float("inf"), V.FLOAT32)}, "freq_base inf; a positive"),
    "an end outside": ({"tokenizer.ggml.eos_token_id": (9999, V.UINT32)}, "9999; an id below 4096 is needed"),
    "another vocabulary": ({"llama.vocab_size": (4000, V.UINT32)}, r"for token_embd.weight, .* \(4000, 256\)"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "has no tokenizer.ggml.tokens, so that no tokenizer can"),
}


@pytest.mark.parametrize(("change", "says"), METADATA.values(), ids=METADATA)
def test_metadata_of_what_is_not_served_is_refused(
    gguf_model: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = ggufs.rewritten(gguf_model, tmp_path / "changed.gguf", change)
    with pytest.raises(SetupError, match=f"^{re.escape(str(path))} .*{says}") as caught:
        GgufModel.open(path, gguf_model.parent)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rope_freqs.weight", "as Llama 3.1 does; that is not"),
        ("blk.0.attn_q.bias", "the tensor blk.0.attn_q.bias"),
    ],
)
def test_other_tensors_are_refused(gguf_model: Path, tmp_path: Path, name: str, says: str) -> None:
    path = ggufs.rewritten(gguf_model, tmp_path / "more.gguf", {}, **{name: [1, 2]})
    with pytest.raises(SetupError, match=says):
        GgufModel.open(path, gguf_model.parent)


def test_frequencies_times_one_are_the_usual_ones(gguf_model: Path, tmp_path: Path) -> None:
    path = ggufs.rewritten(gguf_model, tmp_path / "ones.gguf", {}, **{"rope_freqs.weight": [1, 1]})
    assert "rope_freqs.weight" not in {
        t.name for t in GgufModel.open(path, gguf_model.parent).llama.sources.values()
    }


@pytest.mark.parametrize("kind", ["Q3_K", "IQ4_XS", "Q5_0", "I32", "TQ1_0"])
def test_other_types_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    number = int(Kind[kind])
    keys = [entry("general.architecture", 8, string("llama"))]
    path = ggufs.raw_file(
        tmp_path / "x.gguf", keys, [tensor("token_embd.weight", (256, 32), number)], bytes(40_000)
    )
    with pytest.raises(SetupError, match=f"has token_embd.weight in {kind}; the types read are F32, F16, BF16"):
        GgufModel.open(path, tmp_path)


def keyed(kind: int, value: bytes) -> Callable[[Path], Path]:
    return lambda path: ggufs.raw_file(path, [entry("k", kind, value)])


def placed(*lines: bytes, keys: tuple[bytes, ...] = (), data: int = 4096) -> Callable[[Path], Path]:
    return lambda path: ggufs.raw_file(path, keys, lines, bytes(data))


def raw(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


ALIGNMENT = "general.alignment"
HUGE = 2**63
FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (raw(b""), "it is cut short"),
    "another format": (raw(b"PK\x03\x04" * 9), "it does not begin with GGUF"),
    "version 1": (lambda path: ggufs.raw_file(path, version=1), "it has version 1, and only 2 and 3"),
    "big-endian": (lambda path: ggufs.raw_file(path, version=3 << 24), "it is big-endian"),
    "a count without end": (raw(b"GGUF" + struct.pack("<IQQ", 3, HUGE, HUGE)), "cut short"),
    "a string without end": (keyed(8, struct.pack("<Q", HUGE)), "cut short"),
    "an array without end": (keyed(9, struct.pack("<IQ", 12, HUGE)), "cut short"),
    "strings without end": (keyed(9, struct.pack("<IQ", 8, HUGE)), "cut short"),
    "a nested array": (keyed(9, struct.pack("<IQ", 9, 1)), "type 9, which is unknown or nested"),
    "an unknown value": (keyed(77, b""), "value of the unknown type 77"),
    "a key that is no text": (
        lambda path: ggufs.raw_file(path, [string(b"\xff\xfe") + b"\0\0\0\0\0"]),
        "'utf-8' codec can't decode",
    ),
    "a key twice": (
        lambda path: ggufs.raw_file(path, [entry("k", 0, b"1"), entry("k", 0, b"1")]),
        "its metadata has k twice",
    ),
    "a tensor twice": (placed(tensor("a", (4,)), tensor("a", (4,), offset=32)), "has the tensor a twice"),
    "an unknown tensor type": (placed(tensor("a", (4,), 31)), "its tensor a is of the unknown type 31"),
    "no dimension": (placed(tensor("a", ())), "has 0 dimensions"),
    "too many dimensions": (placed(tensor("a", (1, 1, 1, 1, 1))), "has 5 dimensions"),
    "an empty tensor": (placed(tensor("a", (0, 5))), r"has the impossible shape \(5, 0\)"),
    "a broken block": (placed(tensor("a", (33,), 8)), r"of Q8_0 has the impossible shape \(33,\)"),
    "a size that overflows": (placed(tensor("a", (2**32, 2**32))), "cut short: a ends at"),
    "beyond the end": (placed(tensor("a", (2048,))), r"cut short: a ends at 8,\d+ of 4,\d+ bytes"),
    "an offset beyond": (placed(tensor("a", (4,), offset=2**64 - 32)), "cut short: a ends at"),
    "not aligned": (placed(tensor("a", (4,), offset=4)), "begins at 4, not at a multiple of 32"),
    "an overlap": (placed(tensor("a", (64,)), tensor("b", (4,), offset=32)), "tensors a and b overlap"),
    "no alignment": (placed(keys=(entry(ALIGNMENT, 4, struct.pack("<I", 0)),)), "is 0 and no power of two"),
    "an odd alignment": (placed(keys=(entry(ALIGNMENT, 4, struct.pack("<I", 24)),)), "is 24 and no power"),
    "a text for it": (placed(keys=(entry(ALIGNMENT, 8, string("32")),)), "is '32' and no power of two"),
}


@pytest.mark.parametrize(("write", "says"), FAULTS.values(), ids=FAULTS)
def test_a_damaged_or_hostile_file_is_one_sentence(
    tmp_path: Path, write: Callable[[Path], Path], says: str
) -> None:
    path = write(tmp_path / "x.gguf")
    with pytest.raises(
        SetupError, match=rf"x.gguf can't be read as a GGUF file: .*{says}.*Download it again\.$"
    ):
        GgufFile.read(path)


def test_a_header_has_a_limit(tmp_path: Path) -> None:
    path = keyed(9, struct.pack("<IQ", 0, 2**36))(tmp_path / "x.gguf")
    os.truncate(path, 2**37)  # a sparse file
    with pytest.raises(SetupError, match="its header is longer than 33,554,432 bytes"):
        GgufFile.read(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small GGUF file and its tokenizer's folder."""
    folder = ggufs.checkpoint(
        tmp_path_factory.mktemp("small") / "llama",
        llama=llamas.Llama(layers=1, hidden=32, ffn=32, heads=2, kv_heads=1, head_dim=16, vocab=4096),
    )
    return ggufs.write(folder, folder / "small.gguf", Kind.Q4_0), folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_sentence_or_harmless(
    small: tuple[Path, Path], tmp_path: Path, data: st.DataObject
) -> None:
    path, folder = small
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1), "length") :]
    else:
        # Most of the file is tokens and weights; its keys and tensors are where damage matters.
        keys, lines = content.index(b"tokenizer.ggml.model"), content.rindex(b"output")
        for _ in range(data.draw(st.integers(1, 4), "changes")):
            where = data.draw(
                st.one_of(
                    st.integers(0, keys),
                    st.integers(max(0, lines - 900), min(lines + 900, len(content) - 1)),
                    st.integers(0, len(content) - 1),
                ),
                "where",
            )
            content[where] = data.draw(st.integers(0, 255), "byte")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    target = tmp_path / "target"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    with suppress(SetupError):  # (anything else fails the test, and so does a minute)
        GgufModel.open(damaged, folder).write_weights(target)
