"""vLLM's command line and environment: all that an operator may set, and nothing else."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from llama_serving.engine.vllm.command import CPU_BLOCK, KEY, arguments, environment, kv_bytes
from llama_serving.engine.vllm.installation import Installation
from llama_serving.engine.vllm.served_model import ServedModel
from llama_serving.errors import SetupError
from llama_serving.settings import Settings

GPU = Installation(Path("/opt/vllm/bin/python"), "0.32.0", cpu=False)
CPU = replace(GPU, cpu=True)
MODEL = ServedModel(
    checkpoint=Path("/models/7b"),
    name="codellama/CodeLlama-7b-hf",
    dtype="bfloat16",
    context=16384,
    positions=16384,
    kv_bytes=524_288,
    weight_bytes=13_000_000_000,
)
SOCKET = Path("/tmp/x/vllm.sock")


def words(model: ServedModel = MODEL, kv_memory: int | None = None, **options: Any) -> tuple[str, ...]:
    return arguments(GPU, model, Settings(**options), socket=SOCKET, kv_memory=kv_memory)


def value(of: tuple[str, ...], name: str) -> str:
    assert of.count(name) == 1, of
    return of[of.index(name) + 1]


def test_the_command_of_a_plain_model() -> None:
    assert words() == (
        *("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
        *("--uds", "/tmp/x/vllm.sock", "--model", "/models/7b", "--served-model-name", MODEL.name),
        *("--dtype", "bfloat16", "--max-model-len", "16384", "--max-num-seqs", "16"),
        *("--tensor-parallel-size", "1", "--pipeline-parallel-size", "1", "--gpu-memory-utilization", "0.92"),
        *("--kv-cache-dtype", "auto", "--load-format", "safetensors", "--generation-config", "vllm"),
        *("--structured-outputs-config", '{"backend": "guidance"}'),
        *("--enable-prefix-caching", "--no-enable-log-requests", "--disable-uvicorn-access-log"),
    )


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ({"max_num_seqs": 256}, "--max-num-seqs", "256"),
        ({"vllm_tensor_parallel": 2}, "--tensor-parallel-size", "2"),
        ({"vllm_pipeline_parallel": 4}, "--pipeline-parallel-size", "4"),
        ({"vllm_gpu_share": 0.5}, "--gpu-memory-utilization", "0.5"),
        ({"vllm_kv_dtype": "fp8"}, "--kv-cache-dtype", "fp8"),
        ({"vllm_prefill_tokens": 8192}, "--max-num-batched-tokens", "8192"),
        ({"kv_memory": 1 << 30}, "--kv-cache-memory-bytes", "1073741824"),
        (
            {"kv_memory": 1 << 30, "vllm_tensor_parallel": 2, "vllm_pipeline_parallel": 2},
            "--kv-cache-memory-bytes",
            "268435456",
        ),
    ],
)
def test_an_option_is_passed_on(option: dict[str, Any], name: str, said: str) -> None:
    plain = words()
    given = words(**{"kv_memory": None, **option})
    assert value(given, name) == said
    assert name not in plain or value(plain, name) != said


def test_switches() -> None:
    assert "--enforce-eager" not in words()
    assert "--enforce-eager" in words(vllm_eager=True)
    off = words(vllm_prefix_caching=False)
    assert "--no-enable-prefix-caching" in off
    assert "--enable-prefix-caching" not in off


def test_prompt_lookup() -> None:
    assert "--speculative-config" not in words()
    said = json.loads(value(words(vllm_speculative_tokens=3), "--speculative-config"))
    assert said == {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}


@pytest.mark.parametrize(("positions", "stretched"), [(16384, False), (None, False), (4096, True)])
def test_a_context_beyond_the_configs_positions_needs_a_longer_table(
    positions: int | None, *, stretched: bool
) -> None:
    given = words(replace(MODEL, positions=positions))
    assert ("--hf-overrides" in given) is stretched
    if stretched:
        assert json.loads(value(given, "--hf-overrides")) == {"max_position_embeddings": 16384}


def test_nothing_runs_the_checkpoints_code_or_reads_a_pickle() -> None:
    given = words(**{field.name: getattr(Settings(), field.name) for field in fields(Settings) if field.name != "kv_memory"})  # fmt: skip
    assert not [word for word in given if "trust" in word or "code" in word.removeprefix("codellama")]
    assert value(given, "--load-format") == "safetensors"


# --- the environment --------------------------------------------------------------------------------

OURS = {
    "PATH": "/usr/bin",
    "HOME": "/home/llama",
    "CUDA_VISIBLE_DEVICES": "1",
    "OMP_WAIT_POLICY": "passive",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "LLAMA_API_KEYS": "secret",
    "LLAMA_ENGINE": "vllm",
    "PYTHONPATH": "/ours",
    "VIRTUAL_ENV": "/ours",
    "HF_TOKEN": "secret",
    "AZURE_CLIENT_SECRET": "secret",
    "APPLICATIONINSIGHTS_CONNECTION_STRING": "secret",
    "VLLM_API_KEY": "another",
    "VLLM_CPU_KVCACHE_SPACE": "40",
    "HF_HUB_OFFLINE": "0",
}


def test_the_environment_is_ours_without_what_is_only_ours() -> None:
    found = environment(OURS, GPU, Settings(threads=3), key="k")
    kept = {"HOME", "CUDA_VISIBLE_DEVICES", "OMP_WAIT_POLICY", "VLLM_USE_FLASHINFER_SAMPLER"}
    assert {name: found[name] for name in kept} == {name: OURS[name] for name in kept}
    assert found["PATH"] == "/opt/vllm/bin:/usr/bin"
    assert found[KEY] == "k"
    assert "secret" not in found.values()
    assert not [name for name in found if name.startswith(("LLAMA_", "PYTHONPATH", "VIRTUAL_ENV"))]
    assert "VLLM_CPU_KVCACHE_SPACE" not in found
    assert (found["HF_HUB_OFFLINE"], found["VLLM_NO_USAGE_STATS"], found["DO_NOT_TRACK"]) == ("1", "1", "1")
    assert "OMP_NUM_THREADS" not in found  # (a GPU's)


def test_the_key_is_no_argument() -> None:
    assert not [word for word in words() if "key" in word.lower()]


def test_threads_are_those_of_a_cpu() -> None:
    found = environment(OURS, CPU, Settings(threads=3), key="k")
    assert (found["OMP_NUM_THREADS"], found["VLLM_CPU_OMP_THREADS_BIND"]) == ("3", "nobind")
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment(OURS, CPU, Settings(), key="k")


# --- memory -----------------------------------------------------------------------------------------

FREE = 100_000_000_000
ONE = (16384 + CPU_BLOCK) * 524_288


@pytest.mark.parametrize(
    ("installation", "options", "free", "expected"),
    [
        (GPU, Settings(), FREE, None),
        (GPU, Settings(kv_memory=5), FREE, 5),
        (CPU, Settings(kv_memory=5), FREE, 5),
        (CPU, Settings(max_num_seqs=2), FREE, 2 * ONE),
        (CPU, Settings(max_num_seqs=64), FREE, (FREE - 13_000_000_000) // 2),
    ],
)
def test_memory_for_keys_and_values(
    installation: Installation, options: Settings, free: int, expected: int | None
) -> None:
    assert kv_bytes(installation, MODEL, options, free_bytes=free) == expected


def test_a_cpu_without_memory_for_one_sequence_is_refused() -> None:
    with pytest.raises(SetupError, match="LLAMA_KV_MEMORY"):
        kv_bytes(CPU, MODEL, Settings(), free_bytes=13_000_000_000 + 2 * ONE - 2)
    assert kv_bytes(CPU, MODEL, Settings(), free_bytes=13_000_000_000 + 2 * ONE) == ONE
