"""Finding vLLM: by LLAMA_VLLM or a command on PATH, its build, and the GPUs."""

import sys
from pathlib import Path

import pytest

from llama_serving.engine.vllm.installation import find, gpu_here, python_of
from llama_serving.errors import SetupError

PYTHON = "#!{python}\nimport sys\n"
LONG = "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\nimport sys\n"


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("text", [PYTHON, LONG])
def test_the_python_behind_a_command(tmp_path: Path, text: str) -> None:
    python = program(tmp_path / "a b" / "python3.12")
    command = program(tmp_path / "bin" / "vllm", text.format(python=python) if text is LONG else PYTHON.format(python="/usr/bin/env python3"))  # fmt: skip
    beside = program(tmp_path / "bin" / "python")
    expected = python if text is LONG else beside
    assert python_of(str(command), {}) == expected
    assert python_of(None, {"PATH": str(command.parent)}) == expected


def test_a_shebang_is_read(tmp_path: Path) -> None:
    python = program(tmp_path / "other" / "bin" / "python3")
    command = program(tmp_path / "bin" / "vllm", PYTHON.format(python=python))
    program(tmp_path / "bin" / "python")
    assert python_of(str(command), {}) == python


def test_a_python_is_taken_as_it_is(tmp_path: Path) -> None:
    """(A virtual environment's is a link to another one, which has no vLLM.)"""
    real = program(tmp_path / "real" / "python3.12")
    link = tmp_path / "venv" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    assert python_of(str(link), {}) == link


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no `vllm` on PATH"):
        find(None, {"PATH": str(tmp_path)})
    with pytest.raises(
        SetupError, match=f"LLAMA_VLLM={tmp_path}/python can't be used: there is no such program"
    ):
        find(f"{tmp_path}/python", {})
    alone = program(tmp_path / "vllm")
    with pytest.raises(SetupError, match="does not say which Python"):
        find(str(alone), {})


def test_a_python_without_vllm_is_told() -> None:
    with pytest.raises(SetupError, match="vLLM is not installed there"):
        find(sys.executable, {})


def test_a_program_that_is_no_python_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="does not run as a Python"):
        find(str(program(tmp_path / "python")), {})


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ((), {}, False),
        (("dev/nvidiactl",), {}, True),
        (("dev/nvidiactl",), {"CUDA_VISIBLE_DEVICES": "1"}, True),
        (("dev/nvidiactl",), {"CUDA_VISIBLE_DEVICES": ""}, False),
        (("dev/nvidiactl",), {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        (("usr/lib/wsl/lib/libcuda.so.1",), {}, True),
        (("proc/driver/nvidia/gpus",), {}, True),
        (("proc/driver/nvidia/gpus", ".dockerenv"), {}, False),  # the host's
        (("proc/driver/nvidia/gpus", "var/run/secrets/kubernetes.io"), {}, False),
        (("proc/driver/nvidia/gpus", ".dockerenv", "dev/nvidiactl"), {}, True),
    ],
)
def test_a_gpu_is_one_that_this_process_may_use(
    files: tuple[str, ...], environment: dict[str, str], expected: bool, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert gpu_here(environment, tmp_path) is expected
