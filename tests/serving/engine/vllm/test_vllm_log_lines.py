"""What may be shown of vLLM's log: everything before the first request, then only names."""

import pytest

from llama_serving.engine.vllm.log_lines import LONGEST, LogLines

SECRET = "def secret(prompt):"


def log(*lines: str, asked: bool = False) -> LogLines:
    found = LogLines()
    for line in lines:
        found.add(line)
    found.names_only = asked
    return found


INFO = "(EngineCore pid=5506) INFO 11-29 07:41:17 [utils.py:347] Using LBHNC KV cache layout."
LOADING = "Loading safetensors checkpoint shards:  35% Completed | 5/15 [00:00<00:00, 25.95it/s]"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((), ""),
        ((INFO,), "Using LBHNC KV cache layout."),
        ((INFO, LOADING), LOADING),
        ((INFO, "  warnings.warn(", "Triton is installed, but doesn't include CPU backend."), "Using LBHNC KV cache layout."),
        ((INFO, "(APIServer pid=1) INFO 11-29 07:40:48 [api_utils.py:347] "), "Using LBHNC KV cache layout."),
        ((INFO.replace("Using", "U" * 500),), "U" * LONGEST),
    ],
)  # fmt: skip
def test_progress(lines: tuple[str, ...], says: str) -> None:
    assert log(*lines).progress() == says


PYDANTIC = (
    "(APIServer pid=7) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
    "(APIServer pid=7)   Value error, User-specified max_model_len (9) is greater than 4. [type=value_error, input_value=x]",
    "(APIServer pid=7)     For further information visit https://errors.pydantic.dev",
)
CORE = (
    "(EngineCore pid=8) ERROR 11-29 07:41:17 [core.py:900] Traceback (most recent call last):",
    "(EngineCore pid=8) ERROR 11-29 07:41:17 [core.py:900] ValueError: No available memory for the cache blocks.",
    "(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((INFO,), ""),
        (CORE, "ValueError: No available memory for the cache blocks."),
        (
            CORE[2:],
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        ),
        (
            PYDANTIC,
            "pydantic_core._pydantic_core.ValidationError: User-specified max_model_len (9) is greater than 4.",
        ),
        (("api_server.py: error: unrecognized arguments: --udss",), "unrecognized arguments: --udss"),
        (("KeyError",), "KeyError"),
    ],
)
def test_cause(lines: tuple[str, ...], says: str) -> None:
    assert log(*lines).cause() == says


def test_once_it_is_asked_no_text_of_its_is_shown() -> None:
    lines = (
        f"(EngineCore pid=8) ERROR 11-29 07:41:17 [core.py:900] ValueError: {SECRET}",
        f"(APIServer pid=7) INFO 11-29 07:41:17 [a.py:1] {SECRET}",
        f"api_server.py: error: {SECRET}",
    )
    for some in (lines, lines[:2]):
        assert log(*some, asked=True).progress() == ""
        assert SECRET not in log(*some, asked=True).cause()
    assert log(*lines[:2], asked=True).cause() == "ValueError"
    assert SECRET in log(*lines[:2]).cause()
