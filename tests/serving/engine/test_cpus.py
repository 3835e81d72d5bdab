"""The number of CPUs: by affinity, and by a container's quota in both versions of cgroups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_serving.engine import cpus
from llama_serving.engine.cpus import available


def system(root: Path, own: str, files: dict[str, str]) -> Path:
    """A root with the control groups' files."""
    for name, text in {"proc/self/cgroup": own, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    return root


V2, V1 = "0::/a/b", "4:memory:/m\n3:cpu,cpuacct:/a/b"
CASES = {
    "version 2, 1.5 CPUs": (V2, {"a/b/cpu.max": "150000 100000"}, 2),
    "version 2, 1 CPU": (V2, {"a/b/cpu.max": "100000 100000"}, 1),
    "version 2, another period": (V2, {"a/b/cpu.max": "30000 20000"}, 2),
    "version 2, half a CPU": (V2, {"a/b/cpu.max": "50000 100000"}, 1),
    "version 2, no quota": (V2, {"a/b/cpu.max": "max 100000"}, 16),
    "version 2, the parent's is smaller": (V2, {"a/b/cpu.max": "400000 100000", "a/cpu.max": "300000 100000"}, 3),
    "version 2, the container sees only its root": (V2, {"cpu.max": "250000 100000"}, 3),
    "version 2, more than the affinity": (V2, {"a/b/cpu.max": "6400000 100000"}, 16),
    "version 1, 1.5 CPUs": (V1, {"cpu/a/b/cpu.cfs_quota_us": "150000", "cpu/a/b/cpu.cfs_period_us": "100000"}, 2),
    "version 1, no quota": (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}, 16),
    "version 1, the container sees only its root": (
        V1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    "version 1, another controller's files": (V1, {"memory/m/cpu.max": "100000 100000"}, 16),
    "no control groups": (V2, {}, 16),
    "unreadable figures": (V2, {"a/b/cpu.max": "many 0"}, 16),
    "a period of nothing": (V2, {"a/b/cpu.max": "100000 0"}, 16),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_quota_bounds_the_threads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, files, expected = CASES[name]
    monkeypatch.setattr(cpus, "affinity", lambda: 16)
    root = system(tmp_path, own, {f"sys/fs/cgroup/{path}": text for path, text in files.items()})
    assert available(root) == expected


def test_without_any_file_it_is_the_affinity(tmp_path: Path) -> None:
    assert available(tmp_path) == len(os.sched_getaffinity(0))


THREADS = """
import os, sys
from llama_serving.engine import compute_threads
if sys.argv[1] == "one core":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if sys.argv[1] == "a quota of one":
    compute_threads.available = lambda: 1
import torch
compute_threads.use(int(sys.argv[2]) if sys.argv[2] else None)
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("limit", "setting", "environment", "expected"),
    [
        ("one core", "", {}, 1),
        ("one core", "2", {}, 2),  # the operator's word
        ("a quota of one", "", {"OMP_NUM_THREADS": "2"}, 2),
    ],
)
def test_torch_follows(limit: str, setting: str, environment: dict[str, str], expected: int) -> None:
    env = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"} | environment
    done = subprocess.run(
        [sys.executable, "-c", THREADS, limit, setting], env=env, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == expected
