"""The native backend: transformers' logits over random shapes, int8, threads; test_backends.py has what holds for all."""

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_serving.engine.batching.backends import native, packed_weights
from llama_serving.engine.batching.backends.base import Rows
from llama_serving.engine.batching.backends.native import Native, refusal
from llama_serving.engine.batching.native.bindings import Kernels
from llama_serving.llama_config import LlamaConfig
from llama_serving.settings import QUANTIZATIONS
from tests.support import backends, llamas
from tests.support.llamas import Llama
from tests.support.rows import Cache, ids, other_rows

ALIKE: Final = 0.8
"""How far the logits may lie from those of float32, in terms of how far transformers' own in bf16 do: the root mean square of
a row, in the mean of the rows. Keys, values and what is multiplied are rounded here as there; the sums are not."""
ANY_SHAPE: Final = 1.5
"""Where few numbers make a row, chance has a part in it."""
WORST_ROW: Final = 3.0
"""That of the worst row, in terms of transformers' mean."""
BLOCKS: Final = 400
CONFIG: Final = LlamaConfig(
    vocab=300, hidden=64, ffn=176, layers=2, heads=4, kv_heads=2, head_dim=64, rope_theta=1e6, epsilon=1e-5, tied=False
)  # fmt: skip


@dataclass(frozen=True)
class Held:
    """A model's tensors, as a checkpoint would have them."""

    model: Any

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        found: torch.Tensor = self.model.state_dict()[name]
        assert tuple(found.shape) == shape
        return found

    def linear(self, name: str, shape: tuple[int, int]) -> torch.Tensor:
        return self.tensor(name, shape)


@dataclass(frozen=True)
class Pair:
    """The backend with a model's weights, and transformers' model in float32 and in bf16."""

    ours: Native
    exact: Any
    rounded: Any

    @classmethod
    def of(cls, shape: Llama, instructions: str, *, seed: int = 0, quantization: str = "none") -> "Pair":
        model = _in(torch.float32, _in(torch.bfloat16, llamas.random_model(shape, seed=seed)))
        config = LlamaConfig(
            vocab=shape.vocab, hidden=shape.hidden, ffn=shape.ffn, layers=shape.layers, heads=shape.heads,
            kv_heads=shape.kv_heads, head_dim=shape.head_dim, rope_theta=shape.theta,
            epsilon=model.config.rms_norm_eps, tied=shape.tied,
        )  # fmt: skip
        ours = Native(
            config,
            Held(model),
            backends.kernels(instructions),
            quantization=quantization,
            num_blocks=lambda _: BLOCKS,
        )
        exact = _as_quantized(model, quantization, backends.kernels(instructions))
        return cls(ours, exact, _in(torch.bfloat16, exact))

    def errors(self, text: Sequence[int], found: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """(places, 2): how far the logits found after some tokens of a text are off, and transformers' in bf16."""
        at = list(found)
        with torch.inference_mode():
            exact, rounded = (m(torch.tensor([text])).logits[0, at].float() for m in (self.exact, self.rounded))
        ours = torch.stack(list(found.values()))
        return torch.stack([_size(ours - exact), _size(rounded - exact)], dim=1)


def _size(difference: torch.Tensor) -> torch.Tensor:
    return difference.square().mean(dim=1).sqrt()


def _in(dtype: torch.dtype, model: Any) -> Any:
    """A copy with weights of that dtype; frequencies stay float32, as when a checkpoint is loaded."""
    changed = copy.deepcopy(model)
    for weight in changed.parameters():
        weight.data = weight.data.to(dtype)
    return changed


def _as_quantized(model: Any, quantization: str, kernels: Kernels) -> Any:
    """The model whose weights are what quantization makes of them; the embedding is not multiplied with, and stays."""
    if quantization == "none":
        return model
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = False
    changed = type(model)(config).eval()
    weights = dict(model.state_dict())
    for name, weight in weights.items():
        if weight.dim() > 1 and "embed" not in name:
            if quantization == "int8" or name == "lm_head.weight":
                numbers, scales = packed_weights.quantized(weight)
                weights[name] = numbers * scales[:, None]
            else:
                numbers, scales = in_4_bits(weight, kernels)
                weights[name] = numbers * scales
    changed.load_state_dict(weights)
    return changed


def in_4_bits(weight: torch.Tensor, kernels: Kernels) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and their scales, (outputs, inputs) each, read from what the kernels pack."""
    outputs, inputs = weight.shape
    panels, depths = -(-outputs // packed_weights.PANEL), -(-inputs // packed_weights.DEPTH)
    packed = torch.zeros(panels, depths, 4, 4, 16, dtype=torch.int32)  # tiles, eight inputs, columns
    scales = torch.zeros(panels, depths, packed_weights.PANEL, dtype=torch.bfloat16)
    source = weight.to(torch.bfloat16).contiguous()
    kernels.pack_int4(source.data_ptr(), (outputs, inputs), packed.data_ptr(), scales.data_ptr())
    bits = torch.tensor([16 * (i % 2) + 4 * (i // 2) for i in range(8)], dtype=torch.int32)
    numbers = (packed[..., None] >> bits & 15 ^ 8) - 8
    numbers = numbers.permute(0, 2, 4, 1, 3, 5).reshape(panels * packed_weights.PANEL, -1)[:outputs, :inputs]
    wide = (
        scales.float()
        .transpose(1, 2)
        .reshape(panels * packed_weights.PANEL, -1)
        .repeat_interleave(packed_weights.GROUP, 1)
    )
    return numbers.float(), wide[:outputs, :inputs]


@st.composite
def shapes(draw: st.DrawFn) -> Llama:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    step = math.lcm(16, kv_heads * group)  # (transformers wants a multiple of the heads)
    return Llama(
        layers=draw(st.integers(1, 3)),
        hidden=step * draw(st.integers(1, max(1, 192 // step))),
        ffn=draw(st.integers(1, 200)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from(native.HEAD_SIZES)),
        vocab=draw(st.integers(60, 200)),
        theta=draw(st.sampled_from((1e4, 1e6))),
        tied=draw(st.booleans()),
    )


def chunks(length: int, rng: random.Random) -> Iterator[tuple[int, int]]:
    """(start, end) of the parts in which a prompt goes through."""
    start = 0
    while start < length:
        end = min(length, start + rng.choice((1, 7, 32, 33, 64, 65, 100, 300)))
        yield start, end
        start = end


def logits(ours: Native, text: Sequence[int], prompt: int, rng: random.Random) -> dict[int, torch.Tensor]:
    """Logits after every chunk of a prompt, and after every token that is then generated."""
    blocks = Cache(ours, rng).blocks(len(text))
    found = {}
    for start, end in chunks(prompt, rng):
        rows = Rows(text[start:end], start, blocks, prefill=True, num_logits=1)
        found[end - 1] = ours.forward([rows])[0]
    for at in range(prompt, len(text)):
        found[at] = ours.forward([Rows(text[at : at + 1], at, blocks, prefill=False, num_logits=1)])[0]
    return found


@pytest.fixture(params=backends.SETS, scope="module")
def instructions(request: pytest.FixtureRequest) -> str:
    backends.needs(backends.instruction_set(request.param))
    return str(request.param)


@settings(max_examples=8)
@given(
    shape=shapes(),
    quantization=st.sampled_from(QUANTIZATIONS),
    prompt=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
@example(shape=Llama(head_dim=64, vocab=65, ffn=33), quantization="none", prompt=300, seed=1)
@example(
    shape=Llama(head_dim=128, vocab=63, ffn=1, tied=True, hidden=16), quantization="int8", prompt=129, seed=2
)
@example(shape=Llama(head_dim=64, vocab=63, ffn=31, hidden=48), quantization="int4", prompt=60, seed=3)
def test_the_logits_are_as_near_as_those_of_transformers_in_bf16(
    instructions: str, shape: Llama, quantization: str, prompt: int, seed: int
) -> None:
    rng = random.Random(seed)
    pair = Pair.of(shape, instructions, seed=seed, quantization=quantization)
    text = ids(rng, prompt + 20, shape.vocab)
    ours, theirs = pair.errors(text, logits(pair.ours, text, prompt, rng)).mean(dim=0)
    assert ours < ANY_SHAPE * theirs


@pytest.mark.parametrize("prompt", [1, 250])
@pytest.mark.parametrize("size", native.HEAD_SIZES)
def test_every_generated_token_over_the_borders_of_blocks(instructions: str, size: int, prompt: int) -> None:
    rng = random.Random(3)
    pair = Pair.of(Llama(heads=4, kv_heads=2, head_dim=size, hidden=112, layers=2), instructions)
    text = ids(rng, prompt + 140)
    ours, theirs = pair.errors(text, logits(pair.ours, text, prompt, rng)).T
    assert ours.mean() < ALIKE * theirs.mean()
    assert ours.max() < WORST_ROW * theirs.mean()


@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_far_from_nought(instructions: str, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key's score with its own query is some -300 or 300: powers of e that float32 does not have."""

    def sharp(shape: Llama, *, seed: int = 0) -> Any:
        model = random_model(shape, seed=seed)
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.data = sign * 15 * layer.self_attn.k_proj.weight.data
        return model

    random_model = llamas.random_model
    monkeypatch.setattr(llamas, "random_model", sharp)
    rng = random.Random(8)
    pair = Pair.of(Llama(heads=2, kv_heads=2, head_dim=64), instructions)
    text = ids(rng, 300)
    ours, theirs = pair.errors(text, logits(pair.ours, text, 150, rng)).T
    assert ours.mean() < ALIKE * theirs.mean()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("size", native.HEAD_SIZES)
def test_a_step_of_everything(instructions: str, size: int, quantization: str) -> None:
    """40 that generate, of other lengths each, a prompt's 130 rows from its middle on, and one of one token."""
    rng = random.Random(4)
    pair = Pair.of(
        Llama(heads=6, kv_heads=2, head_dim=size, hidden=96, vocab=301), instructions, quantization=quantization
    )
    cache = Cache(pair.ours, rng)
    parts = [(ids(rng, 1 + 5 * n), 5 * n, False) for n in range(40)]
    parts += [(ids(rng, 200), 70, True), (ids(rng, 1), 0, True)]
    rng.shuffle(parts)
    step = []
    for text, start, prefill in parts:
        blocks = cache.blocks(len(text))
        if start:
            pair.ours.forward([Rows(text[:start], start=0, blocks=blocks, prefill=True, num_logits=0)])
        step.append(Rows(text[start:], start, blocks, prefill=prefill, num_logits=1))
    found = pair.ours.forward(step)
    errors = torch.cat(
        [pair.errors(text, {len(text) - 1: row}) for (text, _, _), row in zip(parts, found, strict=True)]
    )
    ours, theirs = errors.T
    assert ours.mean() < ALIKE * theirs.mean()
    assert ours.max() < WORST_ROW * theirs.mean()


def test_the_number_of_threads_changes_nothing(instructions: str) -> None:
    """Threads divide the work by whole sums."""
    shape = Llama(heads=4, kv_heads=2, head_dim=64, layers=1)
    before, found, rooms = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            ours = Pair.of(shape, instructions, quantization="int4").ours
            cache = Cache(ours, random.Random(6))
            found.append(ours.forward(other_rows(cache, random.Random(7), most=30)))
            rooms.append(len(ours._room))
    finally:
        torch.set_num_threads(before)
    assert rooms[0] < rooms[1] < rooms[2], "each thread has its own room: the number has reached the kernels"
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@given(seed=st.integers(0, 1000), size=st.floats(1e-6, 1e6))
def test_int8_is_off_by_half_a_step_at_most(seed: int, size: float) -> None:
    weight = size * torch.randn(20, 50, generator=torch.Generator().manual_seed(seed))
    weight[3] = 0
    numbers, scales = packed_weights.quantized(weight)
    assert torch.equal(numbers, numbers.to(torch.int8).float())
    assert torch.equal(numbers[3], torch.zeros(50))
    assert (numbers.abs().amax(dim=1) == 127).sum() == 19, "all of the range is used"
    assert (scales > 0).all()
    assert ((numbers * scales[:, None] - weight).abs() <= 0.5001 * scales[:, None]).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), size=st.floats(1e-6, 1e6), inputs=st.sampled_from((1, 31, 32, 50, 96)))
def test_int4_is_nearer_than_the_farthest_numbers_scale(
    instructions: str, seed: int, size: float, inputs: int
) -> None:
    """llama.cpp's Q4_0 has the scale at which the number that is farthest from 0 becomes -8."""
    weight = size * torch.randn(70, inputs, generator=torch.Generator().manual_seed(seed))
    weight[3] = 0
    weight = weight.to(torch.bfloat16).float()
    numbers, scales = in_4_bits(weight, backends.kernels(instructions))
    assert torch.equal(numbers[3], torch.zeros(inputs))
    off_by = (weight / scales).clamp(-8, 7) - numbers
    assert off_by.abs().max() < 0.5001, "each is the nearest integer"
    groups = torch.nn.functional.pad(weight, (0, -inputs % packed_weights.GROUP)).view(
        len(weight), -1, packed_weights.GROUP
    )
    farthest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    theirs = torch.where(farthest == 0, 1, farthest / -8)
    off = (groups / theirs).round().clamp(-8, 7) * theirs - groups
    assert (numbers * scales - weight).square().sum() <= 1.001 * off.square().sum()


def test_integers_that_4_bits_hold_come_back(instructions: str) -> None:
    """With scales that bf16 holds, nothing is lost."""
    numbers = torch.randint(-8, 8, (30, 70), generator=torch.Generator().manual_seed(1)).float()
    numbers[:, ::32] = -8
    weight = numbers * torch.linspace(0.5, 60, 30)[:, None].to(torch.bfloat16).float()
    found, scales = in_4_bits(weight, backends.kernels(instructions))
    assert torch.equal(found * scales, weight)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"head_dim": 16}, "heads of size 64 and 128, and this model's have 16"),
        ({"head_dim": 256}, "heads of size 64 and 128, and this model's have 256"),
        ({"hidden": 72}, "multiples of 16, and this model's is 72"),
        ({}, None),
        ({"hidden": 16, "ffn": 1, "vocab": 3, "head_dim": 128, "heads": 7, "kv_heads": 1}, None),
    ],
)
def test_what_the_kernels_know(change: dict[str, int], says: str | None) -> None:
    found = refusal(replace(CONFIG, **change))
    assert found is None if says is None else says in str(found)


def test_heads_of_another_size_are_an_error_and_no_step(instructions: str) -> None:
    pair = Pair.of(Llama(heads=4, kv_heads=2, head_dim=64, layers=1), instructions)
    pair.ours._model.head_dim = 96
    with pytest.raises(ValueError, match="do not support heads of size 96"):
        pair.ours.forward([Rows([1], 0, [0], prefill=True, num_logits=1)])


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), start=st.sampled_from((0, 5, 64, 200)), layers=st.integers(2, 5))
def test_prompt_rows_may_go_through_a_few_layers_at_a_time(
    instructions: str, seed: int, start: int, layers: int
) -> None:
    """Beside generating rows of other sequences, which go through all layers each time."""
    rng = random.Random(seed)
    shape = Llama(head_dim=64, hidden=48, layers=layers, vocab=65)
    ours = Pair.of(shape, instructions, seed=seed).ours
    cache = Cache(ours, rng)
    blocks, generating = cache.blocks(start + 70), []
    if start:
        ours.forward([Rows(ids(rng, start, 65), 0, blocks, prefill=True, num_logits=0)])
    for _ in range(rng.randrange(4)):
        own, length = cache.blocks(90), rng.randint(1, 80)
        ours.forward([Rows(ids(rng, length, 65), 0, own, prefill=True, num_logits=0)])
        generating.append(Rows(ids(rng, 1, 65), length, own, prefill=False, num_logits=1))
    prompt = Rows(ids(rng, rng.randint(1, 70), 65), start, blocks, prefill=True, num_logits=1)
    expected = ours.forward([*generating, prompt])
    ours.clear(blocks[-(-start // 32) :])
    ends = sorted({*rng.sample(range(1, layers), rng.randrange(1, layers)), layers})
    for first, end in zip((0, *ends), ends, strict=False):
        part = replace(prompt, layers=(first, end), num_logits=int(end == layers))
        found = ours.forward([*generating, part])
        assert torch.equal(found[: len(generating)], expected[: len(generating)])
    assert torch.equal(found, expected)
