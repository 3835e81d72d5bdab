"""Batch invariance: over random cases, by MKL's code for other CPUs, and as the engine sees it at its start."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_serving.engine.batching import batch_invariance
from llama_serving.engine.batching.backends import linear, portable
from llama_serving.engine.batching.backends.portable import Portable
from llama_serving.engine.batching.batch_invariance import establish, violation
from llama_serving.engine.batching.engine import BatchingEngine
from tests.conftest import ROOT
from tests.support import backends, invariance, llamas
from tests.support.llamas import SHAPES

NATIVE = [
    kind for name in backends.SETS for kind in (f"native {name}", f"native int8 {name}", f"native int4 {name}")
]
GENERATED = "a generated token's logits depend on what else is in the step"
PROMPT = "a prompt's logits depend on how it is divided, or on what else is in the step"
OTHER_VENDOR = """
int mkl_serv_intel_cpu_true(void) { return 0; }
int mkl_serv_intel_cpu(void) { return 0; }
int mkl_serv_cpuiszen(void) { return 1; }
"""
"""MKL asks itself whose CPU this is by functions that it exports."""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def loaded(folder: Path, shape: str = "sums of more than 1,024", kind: str = "portable") -> Any:
    return backends.make(kind, llamas.write(SHAPES[shape], folder), 60)


class TestRandomCases:
    @pytest.mark.parametrize("kind", ["portable", *NATIVE])
    def test_here(self, kind: str, tmp_path: Path) -> None:
        assert invariance.failures(kind, cases=30 if kind == "portable" else 20, seed=3, folder=tmp_path) == []

    def test_with_the_code_of_mkl_for_cpus_of_another_vendor(self, tmp_path: Path) -> None:
        """On AMD's CPUs a product of one row depends on the alignment of its operands: detected there, and simulated here."""
        if shutil.which("cc") is None:
            pytest.skip("what stands before MKL's own functions is compiled, and there is no C compiler here")
        (tmp_path / "vendor.c").write_text(OTHER_VENDOR)
        library = tmp_path / "vendor.so"
        subprocess.run(("cc", "-shared", "-fPIC", "-o", library, tmp_path / "vendor.c"), check=True, timeout=60)
        done = subprocess.run(
            (sys.executable, "-m", "tests.support.invariance", "--cases", "30", "--seed", "4"),
            env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": f"{ROOT / 'score'}{os.pathsep}{ROOT / 'deployment'}{os.pathsep}{ROOT}"},
            cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.stdout == "30 cases, 0 failed\n"


# --- dependences on purpose -------------------------------------------------------------------------


def rows_of_one_product_together(backend: Portable, monkeypatch: pytest.MonkeyPatch) -> None:
    backend._layers[0]._down._exact = False


def rows_of_the_head_together(backend: Portable, monkeypatch: pytest.MonkeyPatch) -> None:
    backend._head._exact = False


def rows_of_all_products_together(backend: Portable, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks = linear._in_blocks
    monkeypatch.setattr(
        linear, "_in_blocks", lambda product, size, x, other: in_blocks(product, min(size - 1, 1) * len(x) or 1, x, other)
    )  # fmt: skip


def sequences_counted_in_attention(backend: Portable, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = portable._mixed
    monkeypatch.setattr(
        portable, "_mixed", lambda q, *more: mixed(q.double(), *(m.double() for m in more)).float() if len(q) > 2 else mixed(q, *more)
    )  # fmt: skip


def tiles_counted_from_a_parts_beginning(backend: Portable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that round by a row's index, as a library's may."""
    mixed, prompt = portable._mixed, portable._prompt

    def by_place(q: Any, *more: Any) -> Any:
        place = torch.arange(q.shape[2], dtype=torch.float32).view(1, 1, -1, 1)
        return mixed(q * (1 + 1e-6 * place) if q.shape[2] > portable.QUERIES else q, *more)

    def from_its_beginning(rows: Any, first: int, form: Any) -> Any:
        part = prompt(rows, first, form)
        return replace(part, offset=0, mask=part.mask.roll(-part.offset, 2))

    monkeypatch.setattr(portable, "_mixed", by_place)
    monkeypatch.setattr(portable, "_prompt", from_its_beginning)


Plant = Callable[[Portable, pytest.MonkeyPatch], None]
PLANTS: dict[Plant, str] = {
    rows_of_the_head_together: GENERATED,
    rows_of_one_product_together: GENERATED,
    rows_of_all_products_together: GENERATED,
    sequences_counted_in_attention: GENERATED,
    tiles_counted_from_a_parts_beginning: PROMPT,
}


@pytest.mark.parametrize(("plant", "says"), PLANTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_dependence_is_found(
    plant: Plant, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_invariance, "BUDGET_S", 1e9)
    shape = "sums of more than 1,024"
    if plant is rows_of_the_head_together:  # its sums are as long as the model is wide
        folder = llamas.write(llamas.Llama(hidden=1088, ffn=40, layers=1), tmp_path)
        backend = Portable.of(folder, dtype="float32", num_blocks=lambda _: 60)
    else:
        backend = loaded(tmp_path, shape)
    assert violation(backend) == ""
    plant(backend, monkeypatch)
    assert violation(backend) == says


@pytest.mark.parametrize("kind", ["portable", *NATIVE])
def test_nothing_is_found_where_nothing_is(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llama_serving")
    backend = loaded(tmp_path, "heads of 64", kind)
    before = backend.save(range(backend.num_blocks))
    assert establish(backend)
    assert caplog.messages == []
    after = backend.save(range(backend.num_blocks))
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


class TestWhatIsDoneAboutIt:
    def test_the_backend_computes_in_a_way_in_which_it_holds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = loaded(tmp_path)
        rows_of_all_products_together(backend, monkeypatch)
        assert establish(backend)
        assert caplog.messages == [
            (
                f"results were not batch-invariant on this machine: {GENERATED}. "
                "From now on, products with weights take one row at a time."
            )
        ]
        assert {product.block_rows for product in backend._layers[0].linears} == {1}

    def test_with_one_thread_where_that_is_what_helps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        torch.set_num_threads(2)
        backend = loaded(tmp_path)
        mixed = portable._mixed
        monkeypatch.setattr(
            portable,
            "_mixed",
            lambda q, *more: mixed(q, *more) * (1 + (torch.get_num_threads() > 1) * 1e-6 * (len(q) > 2)),
        )
        assert establish(backend)
        assert torch.get_num_threads() == 1
        assert [message.rpartition("From now on, ")[2] for message in caplog.messages] == [
            "products with weights take one row at a time.",
            "one thread computes.",
        ]

    def test_where_nothing_helps_it_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        torch.set_num_threads(1)
        backend = loaded(tmp_path)
        sequences_counted_in_attention(backend, monkeypatch)
        assert not establish(backend)
        assert caplog.messages[-1] == (
            f"results are not batch-invariant on this machine: {GENERATED}. Seeds do not reproduce texts."
        )

    def test_what_is_not_made_for_it_is_not_tried(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert not establish(loaded(tmp_path, kind="portable bf16"))
        assert caplog.messages == []


@pytest.mark.parametrize(("kind", "holds"), [("portable", True), ("portable bf16", False)])
def test_the_engine_says_so(kind: str, holds: bool, tmp_path: Path) -> None:
    engine = BatchingEngine(lambda: loaded(tmp_path, kind=kind))
    try:
        assert engine.stats().batch_invariant is holds
    finally:
        engine.close()
