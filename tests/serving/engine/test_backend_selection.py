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
from llama_serving.errors import SetupError
from llama_serving.llama_config import LlamaConfig
from llama_serving.settings import Settings
from tests.support import backends, llamas
from tests.support.llamas import SHAPES

CONFIG: Final = LlamaConfig(
    vocab=300, hidden=128, ffn=344, layers=2, heads=2, kv_heads=1, head_dim=64, rope_theta=1e6, epsilon=1e-6, tied=False
)  # fmt: skip
BF16: Final = BackendRequest("bfloat16")
NO_LIBRARY: Final = "there is no compiled library: "


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with all required features, whatever this one has."""
    monkeypatch.setattr(cpu, "missing", lambda: ())


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


def _library(folder: Path) -> Path:
    return folder / "kernels.so"


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

    def test_a_cpu_without_tiles(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu, "missing", lambda: ("amx_tile", "amx_bf16"))
        assert self.fallback_reason() == "this CPU has no amx_tile, amx_bf16"

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
        _library(sources).write_bytes(b"no library")
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
        ],
    )  # fmt: skip
    def test_what_can_not_be_had_stops_the_start(
        self, wanted: BackendRequest, setting: str, why: str, free: str
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
    ],
)
def test_where_it_can_it_is_the_native_one(
    wanted: BackendRequest, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = backends.library()
    monkeypatch.setattr(cpu, "missing", lambda: ())
    monkeypatch.setattr(build, "found_or_made", lambda: library)
    folder = llamas.write(SHAPES["heads of 64"], tmp_path)
    config = read_config(folder)
    chosen = select_backend(config, wanted)
    backend = chosen.load(config, CheckpointWeights(folder), lambda _: 4)
    assert isinstance(backend, Native)
    assert (chosen.block_tokens, backend.block_tokens) == (32, 32)
    assert (backend.name, backend.fallback_reason, chosen.fallback_reason, backend.num_blocks) == (
        name,
        "",
        "",
        4,
    )


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
    NEEDED = "fpu avx512f avx512bw avx512dq avx512vl avx512_bf16 fma amx_tile amx_bf16 amx_int8"

    @pytest.mark.parametrize(
        ("text", "missing"),
        [
            (f"processor\t: 0\nflags\t\t: {NEEDED}\n", ()),
            (f"flags : {NEEDED.replace('amx_tile', 'amx_tiles')}\nflags : {NEEDED}\n", ("amx_tile",)),
            ("vmx flags\t: " + NEEDED, cpu.NEEDED),
            ("", cpu.NEEDED),
        ],
        ids=["all", "one less", "another line", "nothing"],
    )
    def test_flags(
        self, text: str, missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
        (tmp_path / "cpuinfo").write_text(text)
        assert cpu.missing(tmp_path / "cpuinfo") == missing

    def test_no_such_file_and_another_architecture(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert cpu.missing(tmp_path / "none") == cpu.NEEDED
        (tmp_path / "cpuinfo").write_text(f"flags : {self.NEEDED}\n")
        monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
        assert cpu.missing(tmp_path / "cpuinfo") == cpu.NEEDED


class TestTheBuild:
    def test_it_is_made_once_and_found_again(
        self, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = program(
            tmp_path / "compiler",
            f'echo x >> {tmp_path}/count; while [ $# -gt 1 ]; do shift; done; echo made > "$1"',
        )
        monkeypatch.setenv("CXX", name)
        assert build.found_or_made() == build.found_or_made() == _library(sources)
        assert (tmp_path / "count").read_text() == "x\n"
        assert _library(sources).read_text() == "made\n"

    def test_where_the_sources_cant_be_written_it_is_the_users_cache(
        self, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = program(tmp_path / "compiler", 'while [ $# -gt 1 ]; do shift; done; echo made > "$1"')
        monkeypatch.setenv("CXX", name)
        access = build.os.access
        monkeypatch.setattr(build.os, "access", lambda path, how: path != sources and access(path, how))
        made = tmp_path / "cache" / "llama-endpoints" / "kernels.so"
        assert build.found_or_made() == build.found_or_made() == made
        assert not _library(sources).exists()

    def test_those_of_other_sources_are_removed(self, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (sources / "kernels-old.so").touch()
        monkeypatch.setenv(
            "CXX", program(sources.parent / "compiler", 'while [ $# -gt 1 ]; do shift; done; echo > "$1"')
        )
        build.found_or_made()
        assert {path.name for path in sources.iterdir()} == {build.SOURCE, "kernels.so"}

    def test_other_sources_or_flags_are_another_library(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = build.library(tmp_path)
        assert before == build.library(tmp_path)
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
        other_flags = build.library(tmp_path)
        monkeypatch.setattr(build, "HERE", tmp_path)
        (tmp_path / "one.h").write_text("1")
        first = build.library(tmp_path)
        (tmp_path / "one.h").write_text("2")
        assert len({before, other_flags, first, build.library(tmp_path)}) == 4

    def test_without_a_compiler_the_set_up_goes_on(
        self, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert build.main() == 0
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert "no kernels for CPUs with tiles: none was found, and no C++ compiler" in said.err


def test_nothing_is_compiled_where_the_cpu_cant_use_it(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "missing", lambda: ("amx_tile",))
    monkeypatch.setenv("CXX", program(tmp_path / "compiler", f"touch {tmp_path}/called"))
    assert select_backend(CONFIG, BF16).fallback_reason == "this CPU has no amx_tile"
    assert not (tmp_path / "called").exists()
