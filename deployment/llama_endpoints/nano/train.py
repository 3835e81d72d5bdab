"""Train nano: `python -m llama_endpoints.nano.train`, after `corpus`, `tokenizer` and `documents`.

After Ctrl-C or a crash, run the same command again: it resumes from the last checkpoint. Training takes hours on a CPU and
minutes on a GPU; `--device` selects the device.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from llama_endpoints.nano import corpus
from llama_endpoints.nano.model import Angles, Nano, checkpoint, write_config
from llama_serving.catalog import NANO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

HERE: Final = Path(__file__).resolve().parent
SEED: Final = 2026
BATCH: Final = 16_384
"""Tokens per step."""
MICRO: Final = 8_192
"""Tokens per forward pass."""
PHASES: Final = ((256, 0.45), (512, 0.40), (1024, 0.10), (2048, 0.05))
"""Window lengths and the share of steps at each: short windows are cheap, long ones teach long contexts."""
PEAK: Final = 4e-3
LAST: Final = 0.02
"""The peak learning rate, and the final share of it."""
WARM_UP: Final = 60
WEIGHT_DECAY: Final = 0.1
CLIP: Final = 1.0
LAST_PHASES: Final = ((512, 1.0),)
LAST_STEPS: Final = 100
LAST_PEAK: Final = 1e-3
"""The last steps train on short functions; their rate falls from this to zero."""
EVERY: Final = 100
"""Steps between checkpoints."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the loss curve: the loss in nats per token before the step."""

    step: int
    tokens: int
    window: int
    learning_rate: float
    loss: float
    seconds: float


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine."""
    if step < WARM_UP:
        return PEAK * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return PEAK * (LAST + (1 - LAST) * (1 + math.cos(math.pi * progress)) / 2)


def last_rate(step: int) -> float:
    """Return the rate of one of the last steps, counted from their first."""
    return LAST_PEAK * (1 - step / LAST_STEPS)


def windows(steps: int, phases: Sequence[tuple[int, float]] = PHASES) -> list[int]:
    """Return the window length of each step."""
    ends = np.cumsum([share for _, share in phases]) * steps
    lengths = [length for length, _ in phases]
    return [
        lengths[min(int(np.searchsorted(ends, step, side="right")), len(lengths) - 1)] for step in range(steps)
    ]


def batches(
    row: npt.NDArray[np.uint16], steps: int, first: int, phases: Sequence[tuple[int, float]] = PHASES
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (step, inputs, targets) from `first` on, both (rows, window).

    No token is used twice; within a phase the windows come in random order.

    Raises:
        ValueError: the row is too short for the steps.
    """
    if len(row) <= steps * BATCH:
        raise ValueError(f"{steps} steps take {steps * BATCH + 1:,} tokens, there are {len(row):,}")
    plan = windows(steps, phases)
    order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
    begun, at = -1, 0
    for step in range(steps):
        length = plan[step]
        if length != begun:
            count = plan.count(length) * BATCH // length
            order = np.random.default_rng([SEED, length]).permutation(count) * length + step * BATCH
            begun, at = length, 0
        chosen, at = order[at : at + BATCH // length], at + BATCH // length
        if step >= first:
            spans = row[chosen[:, None] + np.arange(length + 1)].astype(np.int64)
            yield step, torch.from_numpy(spans[:, :-1].copy()), torch.from_numpy(spans[:, 1:].copy())


class Trainer:
    """The model, its optimizers and its loss curve, as a checkpoint holds them."""

    def __init__(self, device: torch.device, folder: Path, steps: int) -> None:
        self.model = Nano().to(device)
        self.model.start(SEED)
        self.curve: list[Point] = []
        self._device, self._path, self._steps = device, folder / "checkpoint.pt", steps
        self._angles = Angles.of(max(length for length, _ in PHASES))
        self._compiled = torch.compile(self.model, dynamic=False)
        matrices = [w for n, w in self.model.named_parameters() if w.dim() > 1 and "embed" not in n]
        others = [w for n, w in self.model.named_parameters() if w.dim() == 1 or "embed" in n]
        # Muon (torch's own) for matrices, AdamW for the rest.
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=PEAK, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=PEAK, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        )

    def step(self, inputs: torch.Tensor, targets: torch.Tensor, rate: float) -> None:
        """Take one step of both optimizers."""
        number = len(self.curve)
        started, length = time.monotonic(), inputs.shape[1]
        angles = Angles(self._angles.cos[:length].to(self._device), self._angles.sin[:length].to(self._device))
        rows = MICRO // length
        parts = list(zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True))
        total = 0.0
        for ids, following in parts:
            loss = self._compiled(ids.to(self._device), following.to(self._device), angles) / len(parts)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.curve.append(Point(number, (number + 1) * BATCH, length, rate, total, time.monotonic() - started))

    def save(self) -> None:
        """Write a checkpoint, then replace the old one."""
        partial = self._path.with_suffix(".partial")
        state = {
            "steps": self._steps,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "curve": [asdict(point) for point in self.curve],
        }
        torch.save(state, partial)
        partial.replace(self._path)

    def resume(self) -> None:
        """Load the checkpoint, if there is one.

        Raises:
            ValueError: it is from a run of another length, which has other learning rates.
        """
        if not self._path.exists():
            return
        state: dict[str, Any] = torch.load(self._path, map_location=self._device, weights_only=True)
        if state["steps"] != self._steps:
            raise ValueError(
                f"{self._path} is from a run of {state['steps']} steps; pass --steps {state['steps']} or delete it"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.curve = [Point(**point) for point in state["curve"]]

    def export(self, output: Path) -> None:
        """Write the weights, the config and the loss curve to the model's folder."""
        output.mkdir(parents=True, exist_ok=True)
        save_file(checkpoint(self.model.state_dict()), output / "model.safetensors", metadata={"format": "pt"})
        write_config(output / "config.json")
        with (output / "loss.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, Point.__dataclass_fields__, lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {
                    **asdict(p),
                    "learning_rate": f"{p.learning_rate:.3g}",
                    "loss": f"{p.loss:.4f}",
                    "seconds": f"{p.seconds:.2f}",
                }
                for p in self.curve
            )
        draw(self.curve, output / "loss.png")


def draw(curve: Sequence[Point], path: Path) -> None:
    """Draw the loss curve."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    losses = np.array([point.loss for point in curve])
    width = min(25, len(losses))
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    tokens = np.array([point.tokens for point in curve]) / 1e6
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(tokens, losses, color="0.8", linewidth=0.6, label="each step")
    axes.plot(tokens[width - 1 :], smooth, label=f"mean of {width} steps")
    for before, after in pairwise(curve):
        if before.window != after.window:
            axes.axvline(before.tokens / 1e6, color="0.6", linestyle=":")
    axes.set(
        xlabel="million tokens", ylabel="nats per token", title="nano: training loss (dotted: the window grows)"
    )
    axes.set_ylim(min(losses) - 0.1, float(np.quantile(losses, 0.99)) + 0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _row(path: Path) -> npt.NDArray[np.uint16]:
    """Return the token ids of a file that `documents` wrote."""
    return np.memmap(path, dtype="<u2", mode="r")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train or resume, and write the model."""
    parser = argparse.ArgumentParser(description="Train nano. Run the same command again to resume.")
    parser.add_argument(
        "--folder", type=Path, default=corpus.FOLDER, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--output", type=Path, default=HERE, metavar="DIR", help="default: the package's own folder"
    )
    parser.add_argument(
        "--steps", type=int, default=2800, metavar="N", help="of 16,384 tokens; default: %(default)s"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    trainer = Trainer(torch.device(options.device), options.folder, options.steps)
    trainer.resume()
    steps, done = options.steps, len(trainer.curve)
    main_part = batches(_row(options.folder / "train.bin"), steps, done, PHASES)
    last_part = batches(_row(options.folder / "last.bin"), LAST_STEPS, max(0, done - steps), LAST_PHASES)
    with tqdm(total=steps + LAST_STEPS, initial=done, unit=" steps", smoothing=0.05) as bar:
        for part, rate in ((main_part, partial(learning_rate, steps=steps)), (last_part, last_rate)):
            for number, inputs, targets in part:
                trainer.step(inputs, targets, rate(number))
                recent = trainer.curve[-EVERY:]
                bar.set_postfix(
                    loss=f"{sum(p.loss for p in recent) / len(recent):.3f}", window=recent[-1].window
                )
                bar.update()
                if len(trainer.curve) % EVERY == 0:
                    trainer.save()
    trainer.save()
    trainer.export(options.output)
    print(json.dumps({"parameters": NANO.shape.parameters, "output": str(options.output)}))  # noqa: T201


if __name__ == "__main__":
    main()
