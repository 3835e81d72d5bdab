"""vLLM as a contestant: bare, and behind our own server."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llama_endpoints.devtools.servers import LOOPBACK, free_port, own_server
from load_tests.bench.contestants import ROOT, START_S, Contestant, completions, process, streamed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    Ask = Callable[[str, int], int]

PYTHON: Final = Path(os.environ.get("LLAMA_VLLM") or ROOT / ".venv-vllm" / "bin" / "python")
CPU_KV_GIB: Final = 1
BARE, BEHIND = "vLLM", "our server in front of vLLM"
WAYS: Final[Mapping[str, Callable[[str], Ask]]] = {"": completions, ", streaming": streamed}
"""How it is asked, by what the name in the table ends with."""


@dataclass(frozen=True, slots=True)
class VllmPeer:
    """A vLLM, started bare and by our server with the same options.

    Attributes:
        sequences: that it runs at a time.
        context: tokens that a sequence may come to.
        gpu: it computes on a GPU, with all that it compiles. On a CPU it compiles nothing: that takes minutes at each start.
    """

    sequences: int = 16
    context: int = 2048
    gpu: bool = False

    def options(self, checkpoint: Path) -> list[str]:
        """Of a bare vLLM."""
        eager = [] if self.gpu else ["--enforce-eager"]
        return ["--model", str(checkpoint), "--served-model-name", "any", "--dtype", "bfloat16", *eager,
                "--max-model-len", str(self.context), "--max-num-seqs", str(self.sequences),
                "--generation-config", "vllm", "--load-format", "safetensors"]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Of a bare vLLM: it reports nothing. On a CPU it uses all cores, of which it would leave one by itself."""
        quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        if self.gpu:
            return quiet
        cores = str(len(os.sched_getaffinity(0)))
        return {**quiet, "VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_GIB), "OMP_NUM_THREADS": cores}

    def behind_us(self) -> dict[str, str]:
        """The settings with which our carriers start the same vLLM."""
        of_cpu = {} if self.gpu else {"LLAMA_VLLM_EAGER": "true", "LLAMA_KV_MEMORY": f"{CPU_KV_GIB}GiB"}
        return {
            "LLAMA_ENGINE": "vllm",
            "LLAMA_VLLM": str(PYTHON),
            "LLAMA_MAX_NUM_SEQS": str(self.sequences),
            "LLAMA_CONTEXT": str(self.context),
            **of_cpu,
        }

    @contextmanager
    def bare(self, checkpoint: Path) -> Iterator[str]:
        """A bare vLLM; its URL, with the version."""
        port = free_port(LOOPBACK)
        command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--host", LOOPBACK, "--port", str(port),
                   *self.options(checkpoint)]  # fmt: skip
        log = checkpoint.parent / f"vllm-{port}.log"
        with process(command, f"http://{LOOPBACK}:{port}/health", log=log, env=self.environment()):
            yield f"http://{LOOPBACK}:{port}/v1"

    @contextmanager
    def behind(self, model: Path) -> Iterator[str]:
        """Our server with the same vLLM behind it; its URL, with the version."""
        with own_server(model, env=self.behind_us(), start_s=START_S) as server:
            yield f"{server.url}/v1"

    def contestants(self, checkpoint: Path, model: Path) -> list[Contestant]:
        """Bare and behind us, each whole and streamed."""
        return [
            Contestant(f"{name}{how}", ours=name == BEHIND, serve=partial(_asked, serve, asking))
            for name, serve in ((BARE, partial(self.bare, checkpoint)), (BEHIND, partial(self.behind, model)))
            for how, asking in WAYS.items()
        ]


@contextmanager
def _asked(serve: Callable[[], AbstractContextManager[str]], asking: Callable[[str], Ask]) -> Iterator[Ask]:
    with serve() as url:
        yield asking(url)


def missing() -> str | None:
    """Why vLLM can't be started; None where it can."""
    return None if PYTHON.exists() else "not installed (make vllm, or LLAMA_VLLM)"
