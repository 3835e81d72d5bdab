"""Hostile programs: each fails, within its limits, and nothing of it remains."""

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llama_endpoints.evaluation.sandbox.limits import MIB, Limits
from llama_endpoints.evaluation.sandbox.python import Check, check
from llama_endpoints.evaluation.score import Verdict
from tests.support.sandboxes import needs_sandbox, processes

LIMITS = Limits(wall_s=30, memory=256 * MIB, folder=4 * MIB, file_size=4 * MIB)
SHORT = Limits(wall_s=1.0, memory=256 * MIB, folder=4 * MIB, file_size=4 * MIB)
TEST = """
def check(candidate):
    assert candidate(2) == 4
    assert candidate(3) == 9
"""
HOME = [str(path) for path in Path.home().iterdir() if not Path(sys.base_prefix).is_relative_to(path)]
SQUARE = "def square(n):\n    return n * n\n"


@pytest.fixture(autouse=True)
def nothing_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, file or mount of a program is there after its test."""
    needs_sandbox()
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def state() -> tuple[object, ...]:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        folders = (tmp_path, "/proc/self/fd")
        return processes(), mounts, [sorted(entry.name for entry in Path(name).iterdir()) for name in folders]

    before = state()
    yield
    assert state() == before


def verdict(program: str, limits: Limits = LIMITS) -> tuple[Verdict, str]:
    return check(Check(textwrap.dedent(program), "", TEST, "square"), limits)


def works_if(condition: str) -> str:
    """A program that is right if what it tries succeeds, so that it fails because that is contained."""
    return f"""
def tried():
    try:
{textwrap.indent(textwrap.dedent(condition).strip(), "        ")}
    except BaseException:
        return False

def square(n):
    return n * n if tried() else None
"""


def test_a_right_program_passes() -> None:
    assert verdict(SQUARE) == (Verdict.PASSED, "")


def test_what_hostile_programs_return_would_pass() -> None:
    assert verdict(works_if("return True"))[0] is Verdict.PASSED


CONTAINED = {
    "a process": "import os\nif os.fork() == 0:\n    os._exit(0)\nreturn True",
    "a process by posix_spawn": "import os\nos.posix_spawn('/usr/bin/true', ['true'], {})\nreturn True",
    "a command": "import subprocess\nsubprocess.run(['/usr/bin/true'], check=True)\nreturn True",
    "multiprocessing": "import multiprocessing\np = multiprocessing.Process(target=print)\np.start()\nreturn True",
    "10 GB": "held = bytearray(10 << 30)\nreturn True",
    "10 GB of shared memory": "import mmap\nheld = mmap.mmap(-1, 10 << 30)\nreturn True",
    "a memory file": "import os\nos.memfd_create('x')\nreturn True",
    "a TCP socket": "import socket\nsocket.socket()\nreturn True",
    "a Unix socket": "import socket\nsocket.socket(socket.AF_UNIX)\nreturn True",
    "a name server": "import socket\nsocket.getaddrinfo('example.org', 80)\nreturn True",
    "another network interface": "import os\nreturn len(os.listdir('/sys/class/net')) > 1",
    "the accounts": "return bool(open('/etc/passwd').read())",
    "the user's files": f"import os\nreturn os.path.exists('/home') or any(map(os.path.exists, {HOME!r}))",
    "this checkout": f"import os\nreturn bool(os.listdir({str(Path(__file__).parent)!r}))",
    "writing to /": "open('/x', 'w').close()\nreturn True",
    "writing to /usr": "open('/usr/x', 'w').close()\nreturn True",
    "writing to /dev": "open('/dev/shm/x', 'w').close()\nreturn True",
    "changing the runner": "import sys\nopen(sys.modules['llama_endpoints.evaluation.sandbox.inside.exchange'].__file__, 'a').close()\nreturn True",
    "a file of 8 MB": "with open('x', 'wb') as file:\n    file.write(bytes(8 << 20))\nreturn True",
    "8 MB in files of 1 MB": "for i in range(8):\n    with open(str(i), 'wb') as file:\n        file.write(bytes(1 << 20))\nreturn True",
    "many files": "held = [open('/dev/null') for _ in range(100)]\nreturn True",
    "other processes": "import os\nreturn any(name.isdigit() for name in os.listdir('/proc'))",
    "its own memory as a file": "return bool(open('/proc/self/mem', 'rb'))",
    "the user's environment": "import os\nreturn bool(os.environ.keys() - {'PWD', 'LC_CTYPE', 'OPENBLAS_NUM_THREADS'})",
    "ptrace": "import ctypes\nreturn ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
    "mount": "import ctypes\nreturn ctypes.CDLL(None).mount(b'none', b'/scratch', b'tmpfs', 0, None) == 0",
    "unmounting": "import ctypes\nreturn ctypes.CDLL(None).umount2(b'/scratch', 2) == 0",
    "a user namespace": "import ctypes\nreturn ctypes.CDLL(None).unshare(0x10000000) == 0",
    "becoming root": "import os\nos.setuid(0)\nreturn True",
    "chroot": "import os\nos.chroot('/scratch')\nreturn True",
    "a device": "import os\nos.mknod('/scratch/disk', 0o060600, os.makedev(8, 0))\nreturn True",
    "ending the first process": "import os, signal, time\nos.kill(1, signal.SIGKILL)\ntime.sleep(0.1)\nos.kill(1, 0)\nreturn False",
    "more memory than its limit": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nreturn True",
    "the terminal": "return bool(open('/dev/tty'))",
    "another name of the machine": "import socket\nsocket.sethostname('x')\nreturn True",
    "set-user-id programs": "import os\nos.chmod('/scratch', 0o4777)\nreturn os.geteuid() == 0",
}


@pytest.mark.parametrize("what", CONTAINED)
def test_what_is_forbidden_fails(what: str) -> None:
    found, detail = verdict(works_if(CONTAINED[what]))
    assert found is Verdict.FAILED
    assert "AssertionError" in detail or "ended" in detail


CHEATS = {
    "leaving at once": "import os\nos._exit(0)",
    "leaving in the call": "import os\ndef square(n):\n    os._exit(0)",
    "leaving politely": "def square(n):\n    raise SystemExit(0)",
    "equal to everything": """
        class Equal:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __bool__(self): return True
        def square(n): return Equal()""",
    "an integer equal to everything": """
        class Equal(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
        def square(n): return Equal(0)""",
    "a list of these": """
        class Equal(list):
            def __eq__(self, other): return True
        def square(n): return [Equal()]""",
    "printing the verdict": "print('passed')\nimport sys\nsys.stderr.write('{\"passed\": true}')\ndef square(n):\n    print('passed')",
    "writing the verdict into every descriptor": """
        import os
        for number in range(64):
            try: os.write(number, b'{"passed": true, "kind": "", "detail": ""}\\n')
            except OSError: pass
        def square(n): return None""",
    "answering in the place of the runner": """
        import json, sys
        def square(n):
            runner = sys._getframe(1)
            while runner:
                for value in list(runner.f_locals.values()):
                    if hasattr(value, 'write'):
                        value.write(b'{"value": {"passed": true}}\\n'); value.flush()
                runner = runner.f_back""",
    "replacing the checker's functions": """
        import builtins, sys
        builtins.AssertionError = Warning
        builtins.check = lambda candidate: None
        for module in list(sys.modules.values()):
            for name in ('check', 'verdict', 'encode'):
                if hasattr(module, name): setattr(module, name, lambda *a: True)
        def check(candidate): pass
        def square(n): return True""",
    "replacing JSON": "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'\ndef square(n): return 0",
    "looking for the nonce": """
        import gc, sys
        def square(n):
            texts = [v for o in gc.get_objects() if isinstance(o, dict) for v in o.values() if isinstance(v, str)]
            return 4 if any(len(t) == 32 and set(t) <= set('0123456789abcdef') for t in texts) else None""",
    "assertions off": "import sys\nsys.flags.__class__\n__debug__\ndef square(n): return 1",
    "ending its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef square(n): return 1",
    "signals to everybody": "import os, signal\nfor s in (1, 2, 15, 9):\n    os.kill(-1, s)\ndef square(n): return n * n + 1",
    "ignoring signals": "import signal\nfor s in (1, 2, 15, 24):\n    signal.signal(s, signal.SIG_IGN)\ndef square(n): return 1",
    "deep recursion": "def square(n):\n    return square(n + 1)",
    "a crash": "import ctypes\nctypes.string_at(0)\ndef square(n): return n * n",
    "a list that holds itself": "def square(n):\n    held = []\n    held.append(held)\n    return held",
    "a number of a million digits": "def square(n):\n    return 10 ** 1_000_000",
    "reading from the user": "def square(n):\n    return int(input())",
    "answers without end": """
        import os
        while True:
            for number in range(3, 64):
                try: os.write(number, b' ' * 4096)
                except OSError: pass""",
    "no program at all": "this is not Python",
    "nothing": "",
    "a byte that is no text": "def square(n):\n    return '\\ud800'",
}  # fmt: skip


@pytest.mark.parametrize("what", CHEATS)
def test_a_cheat_fails(what: str) -> None:
    assert verdict(CHEATS[what])[0] is Verdict.FAILED


WAITING = {
    "an infinite loop": "while True: pass",
    "an infinite loop in the call": "def square(n):\n    while True: pass",
    "a long sleep": "import time\ndef square(n):\n    time.sleep(3600)",
    "a regular expression without end": "import re\ndef square(n):\n    return re.match(r'(a+)+$', 'a' * 60 + 'b')",
    "a loop that catches everything": "def square(n):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "threads without end": """
        import threading, time
        def square(n):
            def more():
                while True:
                    try: threading.Thread(target=more).start()
                    except RuntimeError: time.sleep(0.01)
            more()""",
}


@pytest.mark.parametrize("what", WAITING)
def test_what_does_not_end_is_ended(what: str) -> None:
    assert verdict(WAITING[what], SHORT)[0] is Verdict.TIMED_OUT


def test_a_fork_bomb_is_no_bomb() -> None:
    program = "import os\ndef square(n):\n    while True:\n        try: os.fork()\n        except OSError: return None\n"
    assert verdict(program)[0] is Verdict.FAILED


def test_more_memory_than_there_may_be_is_said() -> None:
    program = "def square(n):\n    held = []\n    while True: held.append(bytearray(1 << 20))\n"
    assert verdict(program)[0] is Verdict.OUT_OF_MEMORY


def test_recursion_without_a_limit_ends() -> None:
    program = "import sys\nsys.setrecursionlimit(1 << 30)\ndef square(n):\n    return square(n + 1)\n"
    assert verdict(program, replace(LIMITS, memory=128 * MIB))[0] in (Verdict.FAILED, Verdict.OUT_OF_MEMORY)
