"""Programs in other languages than Python: how each is compiled and run, and where its last statement stands.

A program and its test are one process here, as MultiPL-E has them. The last statement of the test prints a nonce, so that a
program that ends early, or that prints a verdict, has failed. Where it is simple, the nonce is in no file. A program that
tries can still find it, or make the test's assertions void.
"""

import functools
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llama_endpoints.evaluation.sandbox.bubblewrap import Program, counted
from llama_endpoints.evaluation.sandbox.installation import outside_usr, personal
from llama_endpoints.evaluation.sandbox.limits import MIB, Limits
from llama_endpoints.evaluation.sandbox.process import Ended, data_file, run
from llama_endpoints.evaluation.score import Verdict
from llama_serving.errors import SetupError

_PROGRAM: Final = "/program"
_COMPILING: Final = Limits(
    wall_s=60, memory=4096 * MIB, processes=256, file_size=256 * MIB, open_files=1024, folder=256 * MIB
)
_THREADS: Final = 128
"""Node and Java start dozens."""
_PROBE_S: Final = 20
_PATH: Final = {"PATH": "/usr/bin:/bin"}
"""By which compilers find the linker."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs a language here.

    Attributes:
        run: program to run; the argument is its memory limit in MiB.
        compile: compiler to run before.
    """

    run: Callable[[int], Program]
    compile: Program | None = None


@dataclass(frozen=True, slots=True)
class Language:
    """A language of MultiPL-E.

    Attributes:
        name: as MultiPL-E has it, which is mostly the suffix of its files.
        file: name of a program's file.
        last: statement that prints the nonce, which stands at `{}`, or what it reads from descriptor `{}`.
        closing: closing braces that follow the last statement of a test.
        needs: what to install.
        find: returns what runs it here, or None.
        reads: whether the last statement reads the nonce from a descriptor.
        before: lines that stand before the program and again before its test.
    """

    name: str
    file: str
    last: str
    closing: int
    needs: str
    find: Callable[[], Runtime | None]
    reads: bool = False
    before: str = ""


def _where(name: str) -> Path | None:
    found = shutil.which(name)
    return None if found is None else Path(found).resolve()


def _node() -> Runtime | None:
    node = _where("node")
    if node is None:
        return None
    prefix = node.parent.parent
    visible = outside_usr(node, *(() if personal(prefix) else (prefix / "lib",)))

    def program(memory: int) -> Program:
        words = [str(node), f"--max-old-space-size={memory}", f"{_PROGRAM}/main.js"]
        return Program(words, visible, address_space=False)

    return Runtime(program)


def _java() -> Runtime | None:
    java = _where("java")
    if java is None or not (java.parent / "javac").exists() or personal(java.parent.parent):
        return None
    parts = (java.parent.parent / name for name in ("bin", "lib", "conf"))
    visible = outside_usr(*parts, *Path("/etc").glob("java*"))

    def program(memory: int) -> Program:
        words = [
            str(java),
            "-ea",
            f"-Xmx{memory}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:-UsePerfData",
            "-Xshare:auto",
        ]
        return Program([*words, f"{_PROGRAM}/Main.java"], visible, proc=True, address_space=False)

    return Runtime(program)


def _perl() -> Runtime | None:
    perl = _where("perl")
    if perl is None or not _says([str(perl), "-MTest::Deep", "-e", "1"]):
        return None
    return Runtime(lambda _: Program([str(perl), f"{_PROGRAM}/main.pl"]))


def _rust() -> Runtime | None:
    rustc, linker = _where("rustc"), _where("cc")
    if rustc is None or linker is None:
        return None
    asked = ["rustc", "--print", "sysroot"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=_PROBE_S).stdout  # noqa: S603
    root = Path(said.strip() or "/")
    if personal(root) or not (root / "bin/rustc").exists():
        return None
    words = [
        str(root / "bin/rustc"),
        "--edition=2021",
        "-C",
        f"linker={linker}",
        "-C",
        "debuginfo=0",
        "-A",
        "warnings",
    ]
    compiling = Program(
        [*words, "-o", f"{_PROGRAM}/main", f"{_PROGRAM}/main.rs"],
        outside_usr(root / "bin", root / "lib"),
        proc=True,
        address_space=False,
        environment=_PATH,
        processes=True,
    )
    return Runtime(lambda _: Program([f"{_PROGRAM}/main"]), compiling)


def _cpp() -> Runtime | None:
    compiler = _where("g++")
    if compiler is None:
        return None
    words = [str(compiler), "-std=c++17", "-O1", "-w", "-o", f"{_PROGRAM}/main", f"{_PROGRAM}/main.cpp"]
    return Runtime(
        lambda _: Program([f"{_PROGRAM}/main"]),
        Program(words, address_space=False, environment=_PATH, processes=True),
    )


def _bash() -> Runtime | None:
    bash = _where("bash")
    if bash is None:
        return None
    program = Program([str(bash), "--norc", f"{_PROGRAM}/main.sh"], processes=True)
    return Runtime(lambda _: program) if counted(program) else None


def _says(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, timeout=_PROBE_S, check=False).returncode == 0  # noqa: S603


_ASSERTING: Final = "#undef NDEBUG\n#include <assert.h>\n"
"""A program's own `assert`, or NDEBUG, does not outlive it: including the header again defines the macro again."""
_JS_LAST: Final = ';console.log("\\n" + require("fs").readFileSync({}, "latin1"));'
_PERL_LAST: Final = ';open(my $nonce, "<&=", {}); print "\\n", <$nonce>;'
_BASH_LAST: Final = "read -r -u {} nonce; printf '\\n%s\\n' \"$nonce\""
LANGUAGES: Final[Mapping[str, Language]] = {
    one.name: one
    for one in (
        Language("cpp", "main.cpp", 'puts("\\n{}");', 1, "g++", _cpp, before=_ASSERTING),
        Language("java", "Main.java", 'System.out.println("\\n{}");', 2, "default-jdk-headless", _java),
        Language("js", "main.js", _JS_LAST, 0, "nodejs", _node, reads=True),
        Language("pl", "main.pl", _PERL_LAST, 0, "perl libtest-deep-perl", _perl, reads=True),
        # A test calls the function in subshells. (As root this needs user namespaces for nobody, who are counted.)
        Language(
            "sh", "main.sh", _BASH_LAST, 0, "bash, and score as another user than root", _bash, reads=True
        ),
        Language("rs", "main.rs", 'println!("\\n{}");', 1, "rustc gcc", _rust),
    )
}


@functools.cache
def runtime(name: str) -> Runtime:
    """Return what runs a language here.

    Raises:
        SetupError: it is unknown, or nothing here runs it.
    """
    if name not in LANGUAGES:
        raise SetupError(f"{name} can't be run here. The languages are {', '.join(LANGUAGES)}.")
    found = LANGUAGES[name].find()
    if found is None:
        raise SetupError(
            f"Nothing here runs {name}. On Debian and Ubuntu: apt-get install {LANGUAGES[name].needs}."
        )
    return found


def with_nonce(language: Language, test: str, nonce: str) -> str:
    """Return a test whose last statement prints a nonce.

    Raises:
        SetupError: the test has another form.
    """
    ends = [match.start() for match in re.finditer("}", test)]
    if len(ends) < language.closing:
        raise SetupError(
            f"A test in {language.name} ends with {language.closing} closing braces. This one is of another form."
        )
    at = ends[-language.closing] if language.closing else len(test)
    return test[:at] + "\n" + language.last.replace("{}", nonce) + "\n" + test[at:]


def check(language: Language, program: str, test: str, limits: Limits) -> tuple[Verdict, str]:
    """Return the verdict on a program, and its reason.

    Raises:
        SetupError: nothing here runs the language, or its processes would not be counted.
    """
    found, nonce = runtime(language.name), secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="llama-evaluate-") as folder,
        data_file(f"{nonce}\n".encode()) as descriptor,
    ):
        path = Path(folder)
        path.chmod(0o755)  # (nobody reads the program)
        test = with_nonce(language, test, str(descriptor) if language.reads else nonce)
        text = f"{language.before}{program}\n{language.before}{test}"
        (path / language.file).write_text(text, encoding="utf-8", errors="replace")
        if found.compile is not None:
            compiled = run(replace(found.compile, writable={_PROGRAM: path}), _COMPILING)
            if compiled.exit_code:
                return Verdict.FAILED, f"not compiled: {_first_error(compiled)}"
        running = found.run(limits.memory // MIB)
        final = replace(running, visible={**running.visible, _PROGRAM: path})
        if final.processes and not counted(final):
            raise SetupError(
                f"{language.name} can't be run here as root with its files in {path.parent}: its processes are counted as those "
                "of nobody, who may not enter that folder. Set TMPDIR to a folder that all may enter, such as /tmp, or score as "
                "another user."
            )
        limits = limits.divided() if final.processes else replace(limits, processes=_THREADS)
        ended = run(final, limits, inherited=[descriptor] if language.reads else [])
    return _verdict(ended, nonce)


def _verdict(ended: Ended, nonce: str) -> tuple[Verdict, str]:
    if ended.timed_out:
        return Verdict.TIMED_OUT, "the time was up"
    if ended.overflowed:
        return Verdict.FAILED, "too much output"
    if ended.exit_code == 0 and ended.output.decode(errors="replace").rstrip().endswith(nonce):
        return Verdict.PASSED, ""
    if ended.exit_code == 0:
        return Verdict.FAILED, "the test did not come to its end"
    return Verdict.FAILED, f"exit code {ended.exit_code}: {_first_error(ended)}"


def _first_error(ended: Ended) -> str:
    lines = [line.strip() for line in ended.output.decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if "rror" in line), lines[0] if lines else "no message")[:300]
