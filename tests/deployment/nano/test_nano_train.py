"""nano's training, as far as it can be told without training: rates, batches, the module."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from llama_endpoints.nano import FOLDER, train
from llama_endpoints.nano.model import Angles, Nano, checkpoint, config
from llama_serving.catalog import NANO
from tests.support.nano_texts import trained

WEIGHTS: Final = FOLDER / "model.safetensors"
VOCAB: Final = NANO.shape.vocab


STEPS: Final = 20
BATCH: Final = 4096


@pytest.mark.parametrize("steps", [300, 2800])
def test_the_learning_rate_rises_and_then_falls(steps: int) -> None:
    rates = [train.learning_rate(step, steps) for step in range(steps)]
    rising, falling = rates[: train.WARM_UP], rates[train.WARM_UP :]
    assert rising == pytest.approx([train.PEAK * (n + 1) / train.WARM_UP for n in range(train.WARM_UP)])
    assert falling[0] == train.PEAK
    assert all(before > after for before, after in pairwise(falling))
    assert falling[len(falling) // 2] == pytest.approx(train.PEAK * (1 + train.LAST) / 2, rel=0.02)
    assert train.PEAK * train.LAST < falling[-1] < train.PEAK * train.LAST * 1.1


@pytest.fixture
def small_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with rows for a run of 3 + 2 steps of 64 tokens."""
    small = {"BATCH": 64, "MICRO": 64, "PHASES": ((32, 1.0),), "LAST_PHASES": ((32, 1.0),), "LAST_STEPS": 2}
    for name, value in small.items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    rng = np.random.default_rng(1)
    for name in ("train", "last"):
        rng.integers(300, VOCAB, 400).astype("<u2").tofile(tmp_path / f"{name}.bin")
    return tmp_path


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(output: str) -> dict[str, torch.Tensor]:
        train.main(["--folder", str(small_run), "--output", str(tmp_path / output), "--steps", "3"])
        return load_file(tmp_path / output / "model.safetensors")

    whole = run("whole")
    curve = (tmp_path / "whole" / "loss.csv").read_text().splitlines()
    assert len(curve) == 1 + 3 + 2
    assert (tmp_path / "whole" / "loss.png").stat().st_size > 1000
    step = train.Trainer.step
    (small_run / "checkpoint.pt").unlink()
    monkeypatch.setattr(train, "EVERY", 1)
    for stop_at in (1, 4):  # in the first phase, and in the last

        def stopping(self: train.Trainer, *arguments: Any, stop_at: int = stop_at) -> None:
            if len(self.curve) == stop_at:
                raise KeyboardInterrupt
            step(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(train.Trainer, "step", stopping)
            with pytest.raises(KeyboardInterrupt):
                run("stopped")
    resumed = run("resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("steps", [20, 200, 2800])
def test_windows_grow_as_the_phases_say(steps: int) -> None:
    plan = train.windows(steps)
    assert plan == sorted(plan)
    for length, share in train.PHASES:
        assert abs(plan.count(length) - share * steps) <= 1


def test_every_number_of_steps_has_its_windows() -> None:
    assert [len(train.windows(steps)) for steps in range(1, 40)] == [*range(1, 40)]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BATCH", BATCH)


def numbered(count: int) -> Any:
    """A row whose tokens are their own places."""
    return np.arange(count, dtype=np.uint32)


@pytest.mark.usefixtures("small_batches")
def test_no_token_is_shown_twice() -> None:
    shown = []
    for (step, inputs, targets), length in zip(
        train.batches(numbered(STEPS * BATCH + 1), STEPS, 0), train.windows(STEPS), strict=True
    ):
        assert step == len(shown)
        assert inputs.shape == targets.shape == (BATCH // length, length)
        assert torch.equal(targets, inputs + 1)
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(length))
        shown.append(inputs.flatten())
    assert torch.equal(torch.cat(shown).sort().values, torch.arange(STEPS * BATCH))
    firsts = [int(tokens[0]) for tokens in shown if len(tokens)]
    assert firsts != sorted(firsts), "the windows come in the order of the text"


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("first", [1, 7, 9, 17, 19, 20])
def test_a_run_that_goes_on_sees_what_it_would_have_seen(first: int) -> None:
    row = numbered(STEPS * BATCH + 5)
    whole = list(train.batches(row, STEPS, 0))[first:]
    resumed = list(train.batches(row, STEPS, first))
    assert [step for step, *_ in resumed] == [*range(first, STEPS)]
    for (_, inputs, targets), (_, expected, wanted) in zip(resumed, whole, strict=True):
        assert torch.equal(inputs, expected)
        assert torch.equal(targets, wanted)


@pytest.mark.usefixtures("small_batches")
def test_too_short_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="20 steps take 81,921 tokens, there are 81,920"):
        next(train.batches(numbered(STEPS * BATCH), STEPS, 0))


@pytest.fixture(scope="module")
def nano() -> Nano:
    return trained()


def test_the_module_computes_what_transformers_computes(nano: Nano) -> None:
    library: Any = transformers
    reference = library.LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    ids = torch.randint(0, VOCAB, (2, 70), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits, expected = nano.logits(ids, Angles.of(70)), reference(ids).logits
        loss = nano(ids[:, :-1], ids[:, 1:], Angles.of(69))
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    wanted = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss) == pytest.approx(float(wanted), abs=1e-4)


def test_the_weights_have_the_modules_names_and_shapes(nano: Nano) -> None:
    with safe_open(WEIGHTS, "pt") as stored:
        found = {name: (stored.get_slice(name).get_dtype(), tuple(stored.get_slice(name).get_shape()))
                 for name in stored.keys()}  # noqa: SIM118  (no mapping)  # fmt: skip
    made = checkpoint(nano.state_dict())
    assert found == {name: ("BF16", tuple(weight.shape)) for name, weight in made.items()}
    assert {weight.dtype for weight in made.values()} == {torch.bfloat16}
    assert sum(weight.numel() for weight in nano.parameters()) == NANO.shape.parameters


def test_the_committed_config_is_the_modules() -> None:
    assert json.loads((FOLDER / "config.json").read_text(encoding="utf-8")) == config()


def test_a_seed_draws_the_weights() -> None:
    models = [Nano() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        model.start(seed)
    one, same, other = (model.layers[0].mlp.down_proj.weight.data for model in cast("list[Any]", models))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.02 / math.sqrt(2 * NANO.shape.layers), rel=0.05)
