"""The catalog against the published numbers, row by row."""

import json
from dataclasses import fields, replace
from typing import Final

import pytest

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import CATALOG, NANO, DialogFormat, Fact, InfillOrder, InfillTokens, ModelVariant

LLAMA_2: Final = "meta-llama/Llama-2-{}-hf"
CODE: Final = "codellama/CodeLlama-{}-hf"

# name: layers / hidden / FFN / heads / KV heads, vocabulary, parameters, bf16 bytes, KV bytes a token
_7B: Final = (32, 4096, 11008, 32, 32)
_13B: Final = (40, 5120, 13824, 40, 40)
_34B: Final = (48, 8192, 22016, 64, 8)
_70B: Final = (80, 8192, 28672, 64, 8)
PUBLISHED: Final = {
    **dict.fromkeys(
        [LLAMA_2.format("7b"), LLAMA_2.format("7b-chat"), CODE.format("7b-Python")],
        (_7B, 32000, 6_738_415_616, 13_476_831_232, 524_288),
    ),
    **dict.fromkeys(
        [LLAMA_2.format("13b"), LLAMA_2.format("13b-chat"), CODE.format("13b-Python")],
        (_13B, 32000, 13_015_864_320, 26_031_728_640, 819_200),
    ),
    **dict.fromkeys(
        [LLAMA_2.format("70b"), LLAMA_2.format("70b-chat")],
        (_70B, 32000, 68_976_648_192, 137_953_296_384, 327_680),
    ),
    **dict.fromkeys(
        [CODE.format("7b"), CODE.format("7b-Instruct")],
        (_7B, 32016, 6_738_546_688, 13_477_093_376, 524_288),
    ),
    **dict.fromkeys(
        [CODE.format("13b"), CODE.format("13b-Instruct")],
        (_13B, 32016, 13_016_028_160, 26_032_056_320, 819_200),
    ),
    **dict.fromkeys(
        [CODE.format("34b"), CODE.format("34b-Python"), CODE.format("34b-Instruct")],
        (_34B, 32000, 33_743_970_304, 67_487_940_608, 196_608),
    ),
    **dict.fromkeys(
        [CODE.format("70b"), CODE.format("70b-Python"), CODE.format("70b-Instruct")],
        (_70B, 32016, 68_976_910_336, 137_953_820_672, 327_680),
    ),
}
ROWS: Final = list(CATALOG.values())
SHORT: Final = {CODE.format("70b-Python"), CODE.format("70b-Instruct")}


def name_of(row: ModelVariant) -> str:
    return row.name


def test_the_catalog_has_every_published_model_and_nano() -> None:
    assert len(PUBLISHED) == 18
    assert set(CATALOG) == {*PUBLISHED, "nano"}
    assert all(name == row.name for name, row in CATALOG.items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    sizes, vocab, parameters, weight_bytes, kv_bytes = PUBLISHED[name]
    shape = CATALOG[name].shape
    assert (shape.layers, shape.hidden, shape.ffn, shape.heads, shape.kv_heads) == sizes
    assert (shape.vocab, shape.head_dim, shape.tied_embeddings) == (vocab, 128, False)
    assert shape.parameters == parameters
    assert shape.weight_bytes() == weight_bytes
    assert shape.kv_bytes_per_token() == kv_bytes
    assert (shape.weight_bytes(4), shape.kv_bytes_per_token(1)) == (2 * weight_bytes, kv_bytes // 2)


def test_nanos_sizes_are_those_of_its_files() -> None:
    config = json.loads((NANO_FOLDER / "config.json").read_text(encoding="utf-8"))
    shape = NANO.shape
    assert (shape.layers, shape.hidden, shape.ffn) == (
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
    )
    assert (shape.heads, shape.kv_heads) == (config["num_attention_heads"], config["num_key_value_heads"])
    assert (shape.vocab, shape.head_dim) == (config["vocab_size"], config["head_dim"])
    assert shape.parameters == 9_487_488
    assert NANO.trained_positions.value == config["max_position_embeddings"]
    assert NANO.rope_theta == config["rope_parameters"]["rope_theta"]


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_every_fact_has_a_source(row: ModelVariant) -> None:
    facts = [value for field in fields(row) if isinstance(value := getattr(row, field.name), Fact)]
    assert len(facts) == 3
    assert all(source.strip() for source in (row.source, *(fact.source for fact in facts)))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_row_comes_back_from_json(row: ModelVariant) -> None:
    back = ModelVariant.from_dict(json.loads(json.dumps(row.to_dict())))
    assert back == row
    assert (type(back.dialog), type(back.infill.value)) == (type(row.dialog), type(row.infill.value))


def test_the_infilling_order_comes_back_from_json() -> None:
    tokens = InfillTokens(1, 2, 3, 4, InfillOrder.SPM)
    row = replace(NANO, infill=Fact(tokens, "test"))
    back = ModelVariant.from_dict(json.loads(json.dumps(row.to_dict())))
    assert back.infill.value == tokens
    assert back.infill.value.order is InfillOrder.SPM


@pytest.mark.parametrize(
    "damage",
    [
        {"dialog": "chatml"},
        {"infill": {"value": {"prefix": 1}, "source": "x"}},
        {"infill": None},
        {"shape": {"layers": 1}},
        {"unknown": 1},
        {"trained_positions": {"value": 1}},
    ],
    ids=str,
)
def test_a_record_of_another_version_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        ModelVariant.from_dict({**NANO.to_dict(), **damage})


@pytest.mark.parametrize("name", PUBLISHED)
def test_positions_and_rope(name: str) -> None:
    row = CATALOG[name]
    short = name.startswith("meta-llama/") or name in SHORT
    assert row.rope_theta == (1e4 if short else 1e6)
    assert row.trained_positions.value == (4096 if short else 16384)
    assert row.max_context.value == (4096 if short else 100_000)


def test_the_short_70bs_say_who_said_so() -> None:
    assert all("188" in CATALOG[name].trained_positions.source for name in SHORT)


@pytest.mark.parametrize("name", PUBLISHED)
def test_infilling_is_where_the_sources_say(name: str) -> None:
    row = CATALOG[name]
    has = name in {CODE.format(kind) for kind in ("7b", "7b-Instruct", "13b", "13b-Instruct")}
    assert row.infill.value == (InfillTokens(32007, 32008, 32009, 32010, InfillOrder.PSM) if has else None)


@pytest.mark.parametrize("kind", ["70b", "70b-Instruct"])
def test_infilling_of_the_70b_is_off_because_the_sources_disagree(kind: str) -> None:
    assert "disagree" in CATALOG[CODE.format(kind)].infill.source


@pytest.mark.parametrize("name", PUBLISHED)
def test_dialogs_are_where_the_tuning_is(name: str) -> None:
    row = CATALOG[name]
    if name == CODE.format("70b-Instruct"):
        assert (row.dialog, row.step_id, row.stop_ids) == (DialogFormat.SOURCE, 32015, frozenset({2, 32015}))
    else:
        tuned = "Instruct" in name or "chat" in name
        assert (row.dialog, row.step_id) == (DialogFormat.INST if tuned else None, None)
        assert row.stop_ids == {2}


@pytest.mark.parametrize("row", [row for row in ROWS if row.dialog is None], ids=name_of)
def test_a_row_without_dialogs_names_the_one_of_its_size_that_has_them(row: ModelVariant) -> None:
    assert row.instruct is not None
    other = CATALOG[row.instruct]
    assert other.dialog is not None
    assert replace(other.shape, vocab=row.shape.vocab) == row.shape
    assert other.name.partition("/")[0] == row.name.partition("/")[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_familys_defaults(name: str) -> None:
    row = CATALOG[name]
    assert (row.temperature, row.top_p) == ((0.8, 0.7) if name.startswith("meta-llama/") else (0.2, 0.9))
    assert (row.bos_id, row.eos_id, row.dtype) == (1, 2, "bfloat16")
