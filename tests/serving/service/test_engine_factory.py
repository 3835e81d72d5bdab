"""Which engine is started, and which settings it refuses."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_serving.catalog import NANO
from llama_serving.engine.batching import factory as batching
from llama_serving.engine.vllm import installation
from llama_serving.engine.vllm.installation import Installation
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.service import engine_factory
from llama_serving.service.engine_factory import Selection, select_engine, start_engine
from llama_serving.settings import ENGINES, Settings

FOUND = Installation(Path("/opt/vllm/bin/python"), "0.32.0", cpu=False)


class Machine:
    """The machine as `auto` sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = self.cuda = False
        self.vllm: Installation | None = None
        monkeypatch.setattr(installation, "gpu_here", lambda: self.driver)
        monkeypatch.setattr(batching, "gpu_in_torch", lambda: self.cuda)
        monkeypatch.setattr(installation, "find", self._find)

    def _find(self, named: str | None) -> Installation:
        del named
        if self.vllm is None:
            raise SetupError("vLLM was not found.")
        return self.vllm


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "auto"])
def test_a_named_engine_is_taken(machine: Machine, name: str) -> None:
    machine.driver, machine.vllm = True, FOUND
    assert select_engine(Settings(engine=name), "float32") == Selection(name)


@pytest.mark.parametrize("seen_by", ["driver", "cuda"])
def test_auto_on_a_gpu_is_vllm_where_it_can_be_had(machine: Machine, seen_by: str) -> None:
    setattr(machine, seen_by, True)
    found = select_engine(Settings(), "bfloat16")
    assert (found.name, found.why) == ("pipeline", "there is a GPU, and vLLM can't be had. vLLM was not found.")
    machine.vllm = FOUND
    found = select_engine(Settings(), "bfloat16")
    assert (found.name, found.why) == ("vllm", "there is a GPU, and vLLM 0.32.0")


def test_auto_on_a_cpu_is_batching(machine: Machine) -> None:
    machine.vllm = FOUND
    assert select_engine(Settings(), "bfloat16") == Selection("batching", "there is no GPU")
    assert select_engine(Settings(), "float16").name == "pipeline"


class Started(Exception):
    """It came to that."""


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any) -> Any:
        raise Started

    monkeypatch.setattr(engine_factory, "_STARTS", dict.fromkeys((*ENGINES, "auto"), start))


def start(settings: Settings) -> None:
    start_engine(ModelFiles(Path("/none"), NANO), dtype="float32", context=64, settings=settings)


@pytest.mark.usefixtures("starts")
@pytest.mark.parametrize(
    ("engine", "given", "says"),
    [
        ("vllm", {"backend": "native"}, "LLAMA_BACKEND is set, but the vllm engine"),
        ("vllm", {"quantization": "int8"}, "LLAMA_QUANTIZATION is set, but the vllm engine"),
        *(
            (engine, {"cpu_instructions": "avx2"}, f"LLAMA_CPU_INSTRUCTIONS is set, but the {engine} engine")
            for engine in ("vllm", "pipeline")
        ),
        ("vllm", {"upstream_url": "http://a"}, "LLAMA_UPSTREAM_URL is set, but the engine is not `upstream`"),
        ("upstream", {"kv_memory": 1}, "LLAMA_KV_MEMORY is set, but the upstream engine"),
        ("pipeline", {"kv_memory": 1}, "LLAMA_KV_MEMORY is set, but the pipeline engine"),
        ("batching", {"vllm_tensor_parallel": 2}, "LLAMA_VLLM_TENSOR_PARALLEL is set, but the engine is not `vllm`"),
        ("pipeline", {"vllm_kv_dtype": "fp8"}, "LLAMA_VLLM_KV_DTYPE is set, but the engine is not `vllm`"),
    ],
)  # fmt: skip
def test_a_setting_that_an_engine_would_not_look_at_is_refused(
    machine: Machine, engine: str, given: dict[str, Any], says: str
) -> None:
    del machine
    with pytest.raises(SetupError, match=says):
        start(replace(Settings(engine=engine), **given))


@pytest.mark.usefixtures("starts")
@pytest.mark.parametrize(
    "settings",
    [
        Settings(engine="vllm", vllm="/opt/vllm/bin/python", vllm_tensor_parallel=2, kv_memory=1, threads=1),
        Settings(engine="pipeline", vllm="/opt/vllm/bin/python"),
        Settings(engine="batching", kv_memory=1, backend="portable", threads=1),
        Settings(engine="batching", quantization="int4", cpu_instructions="avx2"),
    ],
)
def test_a_setting_of_its_own_is_taken(machine: Machine, settings: Settings) -> None:
    del machine
    with pytest.raises(Started):
        start(settings)


@pytest.mark.usefixtures("starts")
def test_under_auto_vllms_settings_are_for_the_machines_that_have_it(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(vllm_tensor_parallel=2)
    with caplog.at_level(logging.WARNING), pytest.raises(Started):
        start(settings)
    assert caplog.messages == [
        "LLAMA_VLLM_TENSOR_PARALLEL has no effect: the engine is batching, because there is no GPU"
    ]
    caplog.clear()
    machine.driver, machine.vllm = True, FOUND
    with pytest.raises(Started):
        start(settings)
    assert not caplog.messages
