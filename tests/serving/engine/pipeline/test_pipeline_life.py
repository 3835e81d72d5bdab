"""Start, drain, shutdown, forks, and the thread that owns torch."""

import asyncio
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.engine import thread as engine_thread
from llama_serving.engine.pipeline import PipelineEngine
from llama_serving.errors import SetupError, Unavailable
from tests.support.calls import until
from tests.support.draws import PATIENCE_S, BeforeDraw, Gate
from tests.support.pipeline_engines import (
    GREEDY,
    PROMPT,
    SAMPLED,
    collected,
    ids_of,
    in_thread,
    run,
)


def test_stats_count(own_engine: PipelineEngine) -> None:
    run(own_engine, PROMPT, replace(GREEDY, max_new_tokens=3))
    run(own_engine, (1, 5), replace(GREEDY, max_new_tokens=2))
    stats = own_engine.stats()
    assert (stats.engine, stats.alive, stats.running, stats.waiting) == ("pipeline", True, 0, 0)
    assert (stats.sequences, stats.tokens_in, stats.tokens_out) == (2, len(PROMPT) + 2, 5)


def test_close_cancels_everything_and_may_be_repeated(
    own_engine: PipelineEngine, before_draw: BeforeDraw
) -> None:
    gate = Gate(seed=1, position=3)
    before_draw(gate)
    handles = [own_engine.submit(PROMPT, replace(GREEDY, seed=seed)) for seed in (1, 2, 3)]
    assert gate.reached.wait(PATIENCE_S)
    closing = [threading.Thread(target=own_engine.close, daemon=True) for _ in range(2)]
    for thread in closing:
        thread.start()
    until(lambda: not own_engine.stats().alive)
    gate.open()
    for thread in closing:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    in_thread(own_engine.close)
    in_thread(own_engine.drain)
    assert [handle.finish_reason for handle in handles] == ["cancelled"] * 3
    assert [len(ids_of(handle)) for handle in handles] == [4, 0, 0]
    assert not own_engine._thread._thread.is_alive()
    with pytest.raises(Unavailable, match="shutting down") as refused:
        own_engine.submit(PROMPT, GREEDY)
    assert refused.value.retry_after


def test_drain_finishes_what_is_admitted_and_takes_nothing_more(
    own_engine: PipelineEngine, before_draw: BeforeDraw
) -> None:
    gate = Gate(seed=1)
    before_draw(gate)
    handles = [own_engine.submit(PROMPT, replace(GREEDY, seed=seed)) for seed in (1, 2, 3)]
    draining = threading.Thread(target=own_engine.drain, daemon=True)
    draining.start()
    until(lambda: not own_engine.stats().alive)
    with pytest.raises(Unavailable):
        own_engine.submit(PROMPT, GREEDY)
    assert draining.is_alive()
    assert [handle.finish_reason for handle in handles] == [None] * 3
    gate.open()
    draining.join(PATIENCE_S)
    assert not draining.is_alive()
    assert [handle.finish_reason for handle in handles] == ["length"] * 3
    assert [len(ids_of(handle)) for handle in handles] == [24] * 3
    in_thread(own_engine.drain)


def test_close_ends_a_drain(own_engine: PipelineEngine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=1)
    before_draw(gate)
    handles = [own_engine.submit(PROMPT, replace(GREEDY, seed=seed, max_new_tokens=1_000)) for seed in (1, 2)]
    draining = threading.Thread(target=own_engine.drain, daemon=True)
    draining.start()
    assert gate.reached.wait(PATIENCE_S)
    closing = threading.Thread(target=own_engine.close, daemon=True)
    closing.start()
    until(lambda: handles[1].cancelled)
    gate.open()
    for thread in (closing, draining):
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert [handle.finish_reason for handle in handles] == ["cancelled"] * 2


def test_a_waiting_consumer_is_released_by_close(own_engine: PipelineEngine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=1)
    before_draw(gate)
    own_engine.submit(PROMPT, replace(GREEDY, seed=1))
    with ThreadPoolExecutor(1) as threads:
        consumed = threads.submit(run, own_engine, PROMPT, GREEDY)
        assert gate.reached.wait(PATIENCE_S)
        until(lambda: own_engine.stats().waiting == 1)
        closing = threading.Thread(target=own_engine.close, daemon=True)
        closing.start()
        until(lambda: not own_engine.stats().alive)
        gate.open()
        assert consumed.result(PATIENCE_S) == ([], "cancelled")
        closing.join(PATIENCE_S)


def test_the_interpreters_end_closes_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon thread inside torch at interpreter shutdown aborts the process."""
    at_exit: list[Callable[[], None]] = []
    fake = SimpleNamespace(register=at_exit.append, unregister=at_exit.remove)
    monkeypatch.setattr(engine_thread, "atexit", fake)
    own = PipelineEngine(NANO_FOLDER, dtype="float32")
    handle = own.submit(PROMPT, replace(GREEDY, max_new_tokens=1_000))
    assert len(at_exit) == 1
    at_exit[0]()
    assert not own._thread._thread.is_alive()
    assert handle.finish_reason == "cancelled"
    assert at_exit == []


def test_a_forked_copy_refuses_and_never_blocks(
    own_engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child of a fork has no engine thread, and a lock that may have been held while it forked."""
    run(own_engine, PROMPT, replace(GREEDY, max_new_tokens=1))

    def work() -> None:
        with pytest.raises(Unavailable):
            own_engine.submit(PROMPT, GREEDY)
        stats = own_engine.stats()
        done.append((stats.alive, stats.sequences))
        own_engine.drain()
        own_engine.close()

    done: list[tuple[bool, int]] = []
    with monkeypatch.context() as patched, own_engine._thread.lock:
        patched.setattr(own_engine._thread, "_pid", -1)
        in_thread(work)
    assert done == [(False, 1)]
    assert own_engine.stats().alive


def _nothing(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _half_the_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])


def _another_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled_weights(folder: Path) -> None:
    """Weights that transformers would load: unpickling runs code."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


@pytest.mark.parametrize(
    "damage", [_nothing, _half_the_weights, _another_config, _no_weights, _pickled_weights]
)
def test_a_checkpoint_that_can_not_be_loaded_is_a_setup_error(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(NANO_FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    damage(folder)
    before = threading.active_count()
    says = "has no config.json" if damage is _nothing else "can't be loaded as a float32 model"
    with pytest.raises(SetupError, match=says):
        PipelineEngine(folder, dtype="float32")
    assert threading.active_count() == before


@pytest.mark.parametrize("before", [None, "0"])
def test_it_reaches_for_no_hub_and_leaves_the_process_as_it_was(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: reached.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *name, **_: reached.append(name) or [])
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DEACTIVATE_ASYNC_LOAD"):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
    environment = dict(os.environ)
    with ThreadPoolExecutor(2) as threads:
        engines = list(threads.map(lambda _: PipelineEngine(NANO_FOLDER, dtype="float32"), range(2)))
    assert dict(os.environ) == environment
    assert [len(run(engine, PROMPT, GREEDY)[0]) for engine in engines] == [24, 24]
    for engine in engines:
        engine.close()
    assert reached == []


def test_torch_is_called_on_the_engines_thread_alone(before_draw: BeforeDraw) -> None:
    """One thread owns torch. All others are watched while they load, submit, read, cancel and close."""
    drawing: set[str] = set()
    seen: set[str] = set()

    def spy(frame: FrameType, event: str, called: Any) -> None:
        if threading.current_thread().name == "engine":
            return
        name = (
            str(getattr(called, "__module__", "")) if event == "c_call" else frame.f_globals.get("__name__", "")
        )
        if str(name).partition(".")[0] in ("torch", "transformers"):
            seen.add(f"{threading.current_thread().name}: {name}")

    def work(own: PipelineEngine) -> None:
        assert len(run(own, PROMPT, replace(SAMPLED, logprobs=2))[0]) == 24
        handle = own.submit(PROMPT, GREEDY)
        next(iter(handle))
        handle.cancel()
        own.stats()
        assert len(asyncio.run(collected(own.submit(PROMPT, GREEDY)))) == 24

    before_draw(lambda *_: drawing.add(threading.current_thread().name))
    # Only threads that begin from here on are watched, and this one.
    threading.setprofile(spy)
    sys.setprofile(spy)
    try:
        own = PipelineEngine(NANO_FOLDER, dtype="float32")
        work(own)
        with ThreadPoolExecutor(2, thread_name_prefix="client") as threads:
            list(threads.map(work, [own, own]))
        own.close()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert drawing == {"engine"}
    assert seen == set()
