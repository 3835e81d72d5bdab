"""The sandbox itself: values that cross, refusals, what is left after a kill, numpy for tests that need it."""

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.evaluation.sandbox import bubblewrap, python, seccomp
from llama_endpoints.evaluation.sandbox.bubblewrap import Program
from llama_endpoints.evaluation.sandbox.inside import exchange
from llama_endpoints.evaluation.sandbox.inside.names import free_names
from llama_endpoints.evaluation.sandbox.languages import LANGUAGES, with_nonce
from llama_endpoints.evaluation.sandbox.limits import MIB, Limits
from llama_endpoints.evaluation.sandbox.process import run, started
from llama_endpoints.evaluation.sandbox.python import Check, check
from llama_endpoints.evaluation.score import Verdict
from llama_serving.errors import SetupError
from tests.support.calls import until
from tests.support.paths import ROOT
from tests.support.sandboxes import needs_sandbox, processes

LIMITS = Limits(wall_s=60, memory=512 * MIB)

ATOMS = (
    st.none() | st.booleans() | st.integers() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False)
    | st.text() | st.binary() | st.complex_numbers(allow_nan=False, allow_infinity=False)
)  # fmt: skip
HASHABLE = st.recursive(
    ATOMS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=6
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HASHABLE, inner, max_size=3) | st.sets(HASHABLE, max_size=3)
    | st.tuples(inner) | st.lists(inner, max_size=2).map(tuple),
    max_leaves=12,
)  # fmt: skip


def crossed(value: Any) -> Any:
    def refuse(*_: Any) -> Any:
        raise AssertionError

    line = io.BytesIO()
    exchange.send(line, exchange.encode(value, refuse))
    line.seek(0)
    return exchange.decode(exchange.receive(line), refuse, refuse)


def kinds(value: Any) -> Counter[type]:
    """How often each type is in a value."""
    parts = [one for pair in value.items() for one in pair] if isinstance(value, dict) else value
    inside = parts if isinstance(value, dict | list | tuple | set | frozenset) else ()
    return sum((kinds(one) for one in inside), Counter([type(value)]))


@given(VALUES)
def test_plain_values_cross_as_they_are(value: Any) -> None:
    found = crossed(value)
    assert found == value
    assert kinds(found) == kinds(value)


class Sly(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__

    def __repr__(self) -> str:
        return "7"


def test_a_subclass_crosses_as_its_base() -> None:
    found = crossed([Sly(3), {Sly(4): Sly(5)}])
    assert found == [3, {4: 5}]
    assert (type(found[0]), found[0] == 7) == (int, False)


def test_other_objects_stay_and_are_equal_to_nothing() -> None:
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    given_ = exchange.encode([object(), iter("ab")], keep)
    found = exchange.decode(
        given_, kept.__getitem__, lambda number, name: exchange.Reference(number, name, lambda _: ["a", "b"])
    )
    assert not hasattr(found[0], "data")
    assert list(found[1]) == ["a", "b"]
    assert found[0] != found[0]
    assert found[0] not in ({}, None, 0, "", [])
    with pytest.raises(TypeError, match="object, which is neither true nor false"):
        bool(found[0])
    assert exchange.encode(found[1], keep) == {"kept": 1}


@pytest.mark.parametrize(
    ("program", "names"),
    [
        ("assert f(1) == g", {"f", "g"}),
        ("import math as m\nassert m.floor(f(1)) == len([x for x in (1,)])", {"f"}),
        ("def h(a, *b, c=1, **d): return a, b, c, d, f\nassert h(1)", {"f"}),
        ("class A: pass\nfor i in range(3):\n    with open(i) as z: A(z, i)", set()),
        ("try:\n    f()\nexcept KeyError as error:\n    error", {"f"}),
        ("known(f)", {"f"}),
    ],
)
def test_names_that_nothing_defines_are_the_candidates(program: str, names: set[str]) -> None:
    assert free_names(program, {"known": 1}) == names


def test_tests_may_use_numpy() -> None:
    needs_sandbox()
    test = "import numpy as np\ndef check(candidate):\n    assert np.allclose(candidate(2.0), np.array([2.0, 4.0]))\n"
    program = "import numpy as np\ndef powers(x):\n    return [np.float64(x), (np.array([x]) ** 2)[0]]\n"
    assert check(Check(program, "", test, "powers"), LIMITS) == (Verdict.PASSED, "")


def test_a_program_has_the_rights_of_nobody(tmp_path: Path) -> None:
    needs_sandbox()
    script = "id -u; echo $$; cat /proc/self/status; ls /proc; ulimit -v; pwd; env; cat /sys/class/net/x"
    found = run(Program(["/bin/sh", "-c", script], proc=True, processes=True), LIMITS)
    said = found.output.decode()
    assert found.exit_code == 1
    assert said.startswith("65534\n2\n")
    for line in (
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        str(512 * 1024),
        "/scratch\nPWD=/scratch\n",
    ):
        assert line in said
    filtered = run(Program(["/bin/grep", "Seccomp:", "/proc/self/status"], proc=True), LIMITS)
    assert filtered.output == (b"Seccomp:\t2\n" if seccomp.filter_program() else b"Seccomp:\t0\n")


def test_root_starts_programs_as_nobody(tmp_path: Path) -> None:
    needs_sandbox()
    program = Program(["/bin/sleep", "60"])
    with started(program, LIMITS) as running:
        bwrap = running.process.pid
        until(lambda: len(_below(bwrap, processes())) >= 2)  # bubblewrap's first process, and the program
        users = {Path(f"/proc/{number}").stat().st_uid for number in _below(bwrap, processes())}
    assert users == {os.geteuid() if (nobody := bubblewrap.nobody(program)) is None else nobody}
    (closed := tmp_path / "closed").mkdir(mode=0o700)
    assert bubblewrap.nobody(Program([], {"/x": closed / "x"})) is None
    assert bubblewrap.nobody(Program([], writable={"/x": Path("/usr")})) is None


def test_a_sandbox_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_sandbox()
    with pytest.raises(SetupError, match="could not run a program"):
        run(Program(["/bin/true"], {"/x": Path("/none")}), LIMITS)
    monkeypatch.setattr(python, "_INSIDE", Path("/none"))
    with pytest.raises(SetupError, match="could not run a program"):
        check(Check("def f(): return 1\n", "", "def check(candidate): assert candidate() == 1\n", "f"), LIMITS)


def test_output_is_read_up_to_a_limit() -> None:
    needs_sandbox()
    found = run(Program(["/usr/bin/yes"]), Limits(wall_s=60, output=10_000))
    assert (found.overflowed, found.timed_out, len(found.output)) == (True, False, 10_000)


KILLED = """
import sys
from llama_endpoints.evaluation.sandbox.limits import Limits
from llama_endpoints.evaluation.sandbox.python import Check, check
check(Check("while True: pass", "", "def check(candidate): pass", "f"), Limits(wall_s=90))
"""


def test_nothing_goes_on_when_the_scorer_is_killed() -> None:
    needs_sandbox()
    path = f"{ROOT / 'deployment'}:{ROOT / 'score'}"
    scorer = subprocess.Popen([sys.executable, "-c", KILLED], env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path})
    try:
        until(
            lambda: len(_below(scorer.pid, processes())) >= 6
        )  # two times bubblewrap, its first process, and Python
        below = _below(scorer.pid, processes())
    finally:
        scorer.send_signal(signal.SIGKILL)
        scorer.wait()
    until(lambda: not any(Path(f"/proc/{number}").exists() for number in below))


def _below(parent: int, candidates: set[int]) -> set[int]:
    found, ahead = set[int](), {parent}
    while ahead:
        ahead = {one for one in candidates if _parent(one) in ahead} - found
        found |= ahead
    return found


def _parent(number: int) -> int:
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_missing_programs_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="apt-get install bubblewrap"):
        bubblewrap.require.__wrapped__()


def test_namespaces_that_cannot_be_had_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("bwrap", "prlimit", "true"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"No permissions to create new namespace.*unprivileged"):
        bubblewrap.require.__wrapped__()


@given(st.integers(64, 1 << 20))
def test_processes_together_have_the_memory_of_one(mebibytes: int) -> None:
    limits = Limits(memory=mebibytes * MIB)
    each = limits.divided()
    assert each.memory * each.processes <= limits.memory
    assert each.memory >= 16 * MIB
    assert 4 <= each.processes <= limits.processes


@pytest.mark.parametrize("user", [0, 1000])
def test_everybody_needs_the_filter(user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_sandbox()
    monkeypatch.setattr(bubblewrap, "filter_program", lambda: None)
    monkeypatch.setattr("os.geteuid", lambda: user)
    with pytest.raises(SetupError, match="libseccomp2"):
        bubblewrap.require.__wrapped__()


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a secret, and with programs in its `bin`. (It is not in /tmp, which is the sandbox's own.)"""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        home = Path(folder).resolve()
        home.chmod(0o755)
        for name in ("bin/node", "bin/java", "bin/javac", "bin/rustc", "bin/cc", "lib/own", "secret"):
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).write_text(
                f"#!/bin/bash\n[[ $1 != --print ]] || exec echo ${{ROOT:-{home}}}\necho error {home}/*; exit 3\n"
            )
            (home / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")
        yield home


@pytest.mark.parametrize("own", [True, False])
def test_a_runtime_in_a_home_folder_shows_nothing_else_of_it(
    own: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_sandbox()
    if own:
        monkeypatch.setenv("HOME", str(home))
    found = LANGUAGES["js"].find()
    assert found is not None
    ended = run(found.run(64), LIMITS)
    parts = ("bin",) if own else ("bin", "lib")
    assert ended.output.decode().split() == ["error", *(str(home / part) for part in parts)]
    for name in ("java", "rs"):
        found = LANGUAGES[name].find()
        assert (found is None) == own
        if found is not None:
            visible = (found.compile or found.run(64)).visible.values()
            assert {path for path in visible if path.is_relative_to(home)} == {home / "bin", home / "lib"}
    monkeypatch.setenv("ROOT", "/")
    assert LANGUAGES["rs"].find() is None


def test_python_shows_nothing_but_its_own_of_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_sandbox()
    monkeypatch.setenv("HOME", sys.base_prefix)
    listing = f"import os\ndef f(): return sorted(os.listdir({sys.base_prefix!r}))\n"
    test = "def check(candidate): assert candidate() == ['bin', 'lib']\n"
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        assert check(Check(listing, "", test, "f"), LIMITS) == (Verdict.PASSED, "")
        assert Path(sys.base_prefix) not in python._program("candidate").visible.values()


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=LANGUAGES)
def test_the_nonce_is_printed_last(language: Any) -> None:
    test = "a {\n  b {\n    c();\n  }\n}\n"
    found = with_nonce(language, test, "NONCE")
    after = found.partition("NONCE")[2].partition("\n")[2]
    assert after.count("}") == language.closing
    assert found.replace(language.last.replace("{}", "NONCE"), "").split() == test.split()
    if language.closing:
        with pytest.raises(SetupError, match="closing braces"):
            with_nonce(language, "no braces", "NONCE")
