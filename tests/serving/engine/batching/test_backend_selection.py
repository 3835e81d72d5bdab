"""Selection of the backend: native if possible, else portable with the reason."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from llama_serving.engine.batching.backends.native import Native
from llama_serving.engine.batching.backends.portable import Portable
from llama_serving.engine.batching.backends.selection import BackendRequest, select_backend
from llama_serving.engine.batching.checkpoint import CheckpointWeights, read_config
from llama_serving.engine.batching.factory import start
from llama_serving.engine.batching.native import build, cpu
from llama_serving.engine.batching.native.cpu import InstructionSet
from llama_serving.errors import SetupError
from llama_serving.llama_config import LlamaConfig
from llama_serving.settings import Settings
from tests.support import backends, llamas
from tests.support.llamas import SHAPES

CONFIG: Final = LlamaConfig(
    vocab=300, hidden=128, ffn=344, layers=2, heads=2, kv_heads=1, head_dim=64, rope_theta=1e6, epsilon=1e-6, tied=False
)  # fmt: skip
BF16: Final = BackendRequest("bfloat16")
AVX2: Final = backends.instruction_set("avx2")
COPIES: Final = 'while [ $# -gt 1 ]; do shift; done; echo made > "$1"'
"""A compiler's work."""
NO_LIBRARY: Final = "there is no compiled library: "


def cpu_with(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with these instruction sets."""
    monkeypatch.setattr(cpu, "usable", lambda: tuple(backends.instruction_set(name) for name in names.split()))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with one instruction set that there are kernels for, whatever this one has."""
    cpu_with("avx2", monkeypatch)


@pytest.fixture
def without_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU of AMD's with all of x86-64's instruction sets but AMX."""
    flags = " ".join(backends.instruction_set("avx512_bf16").features)
    (tmp_path / "cpuinfo").write_text(f"flags : avx2 {flags}\n")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's folder and the user's cache, both empty."""
    monkeypatch.setattr(build, "library", _library)
    monkeypatch.setattr(build, "HERE", tmp_path / "sources")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / build.SOURCE).write_text("int main() {}")
    return tmp_path / "sources"


def _library(instructions: InstructionSet, folder: Path) -> Path:
    return folder / f"kernels-{instructions.name}.so"


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


class TestWhyNot:
    """By default the portable backend is used."""

    def fallback_reason(self, config: LlamaConfig = CONFIG, wanted: BackendRequest = BF16) -> str:
        chosen = select_backend(config, wanted)
        assert chosen.kernels is None
        assert chosen.block_tokens == Portable.block_tokens
        return chosen.fallback_reason

    @pytest.mark.parametrize(
        ("change", "wanted", "says"),
        [
            ({}, BackendRequest("float32"), "it computes in bfloat16, not float32 (LLAMA_DTYPE)"),
            ({"head_dim": 16}, BF16, "they support heads of size 64 and 128, and this model's have 16"),
            (
                {"hidden": 24},
                BF16,
                "they support hidden sizes that are multiples of 16, and this model's is 24",
            ),
            ({}, BackendRequest("bfloat16", backend="portable"), "LLAMA_BACKEND is portable"),
        ],
    )
    def test_what_it_does_not_compute(
        self, fast: None, change: dict[str, int], wanted: BackendRequest, says: str
    ) -> None:
        assert self.fallback_reason(replace(CONFIG, **change), wanted) == says

    @pytest.mark.parametrize(("machine", "lacks"), [("x86_64", "avx2, fma"), ("aarch64", "asimd")])
    def test_a_cpu_with_none_of_the_instruction_sets(
        self, machine: str, lacks: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
        monkeypatch.setattr(cpu, "CPUINFO", Path("/nowhere"))
        assert self.fallback_reason() == f"this CPU has no {lacks}"

    def test_another_architecture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu.platform, "machine", lambda: "riscv64")
        assert self.fallback_reason() == "there are no kernels for riscv64"

    def test_no_compiler(
        self, fast: None, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert (
            self.fallback_reason()
            == f"{NO_LIBRARY}none was found, and no C++ compiler (g++, clang++, c++, or CXX) to make one"
        )

    def test_a_compiler_that_fails(
        self, fast: None, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = program(tmp_path / "fails", "echo a note >&2; echo 'step.cpp:1: error: bad flag' >&2; exit 1")
        monkeypatch.setenv("CXX", f"{name} --flag")
        assert self.fallback_reason() == f"{NO_LIBRARY}{name} fails: step.cpp:1: error: bad flag"
        assert list(sources.iterdir()) == [sources / build.SOURCE], "nothing is left behind"

    def test_a_compiler_that_is_none(
        self, fast: None, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
        assert (
            self.fallback_reason() == f"{NO_LIBRARY}{tmp_path}/nothing can't be run: No such file or directory"
        )

    def test_a_compiler_that_takes_forever(
        self, fast: None, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = program(tmp_path / "slow", "exec /bin/sleep 60")
        monkeypatch.setenv("CXX", name)
        monkeypatch.setattr(build, "TIMEOUT_S", 0.1)
        assert self.fallback_reason() == f"{NO_LIBRARY}{name} took more than 0.1 s"

    def test_a_library_that_is_none(self, fast: None, sources: Path) -> None:
        _library(AVX2, sources).write_bytes(b"no library")
        assert self.fallback_reason().startswith("its library can't be loaded: ")

    def test_no_folder_to_write(
        self, fast: None, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setattr(build, "HERE", tmp_path / "file" / "sources")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert self.fallback_reason() == (
            f"{NO_LIBRARY}none was found, and neither {tmp_path}/file/sources nor {tmp_path}/file/llama-endpoints can be written"
        )


class TestWhatAnOperatorInsistsOn:
    @pytest.mark.parametrize(
        ("wanted", "setting", "why", "free"),
        [
            (
                BackendRequest("float32", backend="native"),
                "BACKEND=native", "it computes in bfloat16, not float32 (LLAMA_DTYPE)", "auto",
            ),
            (
                BackendRequest("float32", quantization="int8"),
                "QUANTIZATION=int8", "it computes in bfloat16, not float32 (LLAMA_DTYPE)", "none",
            ),
            (
                BackendRequest("bfloat16", backend="portable", quantization="int8"),
                "QUANTIZATION=int8", "LLAMA_BACKEND is portable", "none",
            ),
            (
                BackendRequest("float32", instructions="avx2"),
                "CPU_INSTRUCTIONS=avx2", "it computes in bfloat16, not float32 (LLAMA_DTYPE)", "auto",
            ),
            (
                BackendRequest("bfloat16", backend="portable", instructions="avx2"),
                "CPU_INSTRUCTIONS=avx2", "LLAMA_BACKEND is portable", "auto",
            ),
            (
                BackendRequest("bfloat16", instructions="amx"),
                "CPU_INSTRUCTIONS=amx",
                "this CPU has no amx_tile, amx_bf16. It has what avx512_bf16, avx512, avx2 need", "auto",
            ),
        ],
    )  # fmt: skip
    def test_what_can_not_be_had_stops_the_start(
        self, without_tiles: None, wanted: BackendRequest, setting: str, why: str, free: str
    ) -> None:
        with pytest.raises(SetupError) as caught:
            select_backend(CONFIG, wanted)
        assert str(caught.value) == (
            f"LLAMA_{setting} needs the native backend, which can't be used: {why}. Set it to {free}, or fix the cause."
        )

    @pytest.mark.parametrize(("setting", "value"), [("backend", "native"), ("quantization", "int8")])
    def test_it_is_one_error_of_the_engines_start(self, setting: str, value: str, tmp_path: Path) -> None:
        llamas.write(SHAPES["grouped heads"], tmp_path)
        with pytest.raises(SetupError, match=f"LLAMA_{setting.upper()}={value} needs the native backend"):
            start(tmp_path, dtype="bfloat16", context=100, settings=Settings(**{setting: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (BF16, "native"),
        (BackendRequest("bfloat16", backend="native"), "native"),
        (BackendRequest("bfloat16", quantization="int8"), "native int8"),
        (BackendRequest("bfloat16", quantization="int4"), "native int4"),
        *((BackendRequest("bfloat16", instructions=name), "native") for name in backends.SETS),
    ],
)
def test_where_it_can_it_is_the_native_one(
    wanted: BackendRequest, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instructions = wanted.instructions if wanted.instructions != "auto" else "avx2"
    library = backends.library(instructions)
    cpu_with(instructions, monkeypatch)
    monkeypatch.setattr(build, "found_or_made", lambda _: library)
    folder = llamas.write(SHAPES["heads of 64"], tmp_path)
    config = read_config(folder)
    chosen = select_backend(config, wanted)
    backend = chosen.load(config, CheckpointWeights(folder), lambda _: 4)
    assert isinstance(backend, Native)
    assert (chosen.block_tokens, backend.block_tokens) == (32, 32)
    assert (backend.name, backend.instructions, backend.num_blocks) == (name, instructions, 4)
    assert (backend.fallback_reason, chosen.fallback_reason) == ("", "")


def test_the_next_best_where_the_best_cant_be_used(
    sources: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = backends.library("avx2")
    cpu_with("avx512 avx2", monkeypatch)
    _library(backends.instruction_set("avx512"), sources).write_bytes(b"no library")
    _library(AVX2, sources).write_bytes(library.read_bytes())
    chosen = select_backend(CONFIG, BF16)
    assert chosen.kernels is not None
    assert chosen.kernels.instructions == "avx2"
    assert [message.partition(" are: ")[0] for message in caplog.messages] == [
        "the kernels for avx512 can't be used, those for avx2"
    ]
    refused = (
        "CPU_INSTRUCTIONS=avx512 needs the native backend, which can't be used: its library can't be loaded: "
    )
    with pytest.raises(SetupError, match=refused):
        select_backend(CONFIG, BackendRequest("bfloat16", instructions="avx512"))


def test_the_portable_one_says_why_it_serves(tmp_path: Path) -> None:
    folder = llamas.write(SHAPES["heads of 64"], tmp_path)
    config = read_config(folder)
    backend = select_backend(config, BackendRequest("float32")).load(
        config, CheckpointWeights(folder), lambda _: 4
    )
    assert isinstance(backend, Portable)
    assert (backend.name, backend.fallback_reason) == (
        "portable",
        "it computes in bfloat16, not float32 (LLAMA_DTYPE)",
    )


class TestTheCpu:
    @pytest.mark.parametrize(
        ("machine", "fields", "names"),
        [
            (
                "x86_64",
                "vendor_id: GenuineIntel\nflags: ALL amx_int8",
                "amx avx512_vnni avx512 avx512_bf16 avx2",
            ),
            ("x86_64", "vendor_id\t: AuthenticAMD\nflags\t\t: ALL", "amx avx512_bf16 avx512_vnni avx512 avx2"),
            ("x86_64", "vendor_id: AuthenticAMD\nflags: avx2 avx512f fma", "avx2"),
            ("x86_64", "vendor_id: AuthenticAMD\nflags: avx2", ""),
            ("x86_64", "flags: avx2 f\nflags: ALL", ""),
            ("x86_64", "vmx flags: ALL", ""),
            ("x86_64", "", ""),
            ("aarch64", "Features\t: fp asimd bf16", "neon_bf16 neon"),
            ("aarch64", "Features\t: fp asimd", "neon"),
            ("aarch64", "flags: ALL", ""),
            ("riscv64", "flags: ALL", ""),
        ],
    )
    def test_what_is_usable(
        self, machine: str, fields: str, names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
        everything = " ".join(backends.instruction_set("amx").features) + " avx512_vnni avx2"
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{fields.replace('ALL', everything)}\n")
        assert " ".join(one.name for one in cpu.usable(tmp_path / "cpuinfo")) == names

    def test_no_such_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
        assert cpu.usable(tmp_path / "none") == ()
        assert cpu.missing(AVX2, tmp_path / "none") == ("avx2", "fma")


class TestTheBuild:
    def test_it_is_made_once_and_found_again(
        self, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = program(
            tmp_path / "compiler",
            f'echo x >> {tmp_path}/count; while [ $# -gt 1 ]; do shift; done; echo made > "$1"',
        )
        monkeypatch.setenv("CXX", name)
        assert build.found_or_made(AVX2) == build.found_or_made(AVX2) == _library(AVX2, sources)
        assert (tmp_path / "count").read_text() == "x\n"
        assert _library(AVX2, sources).read_text() == "made\n"

    def test_where_the_sources_cant_be_written_it_is_the_users_cache(
        self, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = program(tmp_path / "compiler", 'while [ $# -gt 1 ]; do shift; done; echo made > "$1"')
        monkeypatch.setenv("CXX", name)
        access = build.os.access
        monkeypatch.setattr(build.os, "access", lambda path, how: path != sources and access(path, how))
        made = tmp_path / "cache" / "llama-endpoints" / "kernels-avx2.so"
        assert build.found_or_made(AVX2) == build.found_or_made(AVX2) == made
        assert not _library(AVX2, sources).exists()

    def test_those_of_other_sources_are_removed(self, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (sources / "kernels-old.so").touch()
        monkeypatch.setenv(
            "CXX", program(sources.parent / "compiler", 'while [ $# -gt 1 ]; do shift; done; echo > "$1"')
        )
        build.found_or_made(AVX2)
        assert {path.name for path in sources.iterdir()} == {build.SOURCE, "kernels-avx2.so"}

    def test_other_sources_or_flags_are_another_library(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = build.library(AVX2, tmp_path)
        assert before == build.library(AVX2, tmp_path)
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
        other_flags = build.library(AVX2, tmp_path)
        monkeypatch.setattr(build, "HERE", tmp_path)
        (tmp_path / "one.h").write_text("1")
        first = build.library(AVX2, tmp_path)
        (tmp_path / "one.h").write_text("2")
        assert len({before, other_flags, first, build.library(AVX2, tmp_path)}) == 4

    def test_without_a_compiler_the_set_up_goes_on(
        self, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert build.main() == 0
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert "kernels that could not be compiled: none was found, and no C++ compiler" in said.err

    def test_the_set_up_compiles_for_all_cpus_of_the_architecture(
        self, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A compiler that is too old for one of them makes the others."""
        script = f'case "$*" in *TILES*) echo "error: too old" >&2; exit 1;; esac\n{COPIES}'
        name = program(tmp_path / "compiler", script)
        monkeypatch.setenv("CXX", name)
        monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
        cpu_with("", monkeypatch)
        assert build.main() == 0
        made = [
            _library(backends.instruction_set(one), sources)
            for one in ("avx512_bf16", "avx512_vnni", "avx512", "avx2")
        ]
        said = capsys.readouterr()
        assert said.out == "".join(f"{path}\n" for path in made)
        assert f"could not be compiled: {name} fails: error: too old\n" in said.err
        assert {*sources.iterdir()} == {*made, sources / build.SOURCE}


def test_nothing_is_compiled_where_the_cpu_cant_use_it(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_with("", monkeypatch)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "riscv64")
    monkeypatch.setenv("CXX", program(tmp_path / "compiler", f"touch {tmp_path}/called"))
    assert select_backend(CONFIG, BF16).fallback_reason == "there are no kernels for riscv64"
    assert not (tmp_path / "called").exists()
