"""MBPP, infilling and MultiPL-E, with small data of our own."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sandbox import languages
from llama_endpoints.evaluation.sandbox.limits import MIB, Limits
from llama_endpoints.evaluation.tasks import registry
from llama_endpoints.evaluation.tasks.task import PromptStyle, Sampling
from llama_serving.errors import SetupError
from tests.support.evaluated import measured, scores_of, task
from tests.support.sandboxes import needs, needs_sandbox, processes


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def sentence(number: int, **more: Any) -> dict[str, Any]:
    return {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add(n):\r\n    return n + {number}\r\n",
        "test_setup_code": "",
        "test_list": [f"assert add({n}) == {n + number}" for n in range(2)],
        **more,
    }


PAIRS = {
    "text": "Write a function to sum pairs.",
    "code": "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\ndef total(pairs):\n    return sum(p.a * p.b for p in pairs)",
    "test_list": ["assert total([Pair(1, 2), Pair(3, 4)]) == 14", "assert math.isclose(total([]), 0)"],
    "test_setup_code": "import math",
}
FORMS = {
    "text": "Write functions of several kinds of results.",
    "code": (
        "from collections import Counter, OrderedDict, deque\n"
        "def same(x):\n    return x\n"
        "def squares(n):\n    return (i * i for i in range(n))\n"
        "def counted(t):\n    return Counter(t)\n"
        "def bad():\n    raise KeyError('k')\n"
    ),
    "test_list": [
        "assert same((1, [2.5, {'a': {3, 4}}], None, True, 'é\\n', b'\\x00', 1j)) == (1, [2.5, {'a': {3, 4}}], None, True, 'é\\n', b'\\x00', 1j)",
        "assert type(same((1,))) is tuple and same(10 ** 400) == 10 ** 400 and same({(1, 2): 3})[(1, 2)] == 3",
        "assert list(squares(4)) == [0, 1, 4, 9] and squares(2) != [0, 1]",
        "assert counted('aab') == {'a': 2, 'b': 1} and same(x=range(3)) == range(3)",
        "assert same(float('inf')) == float('inf') and same(float('nan')) != same(float('nan'))",
        "try:\n    bad()\n    raise AssertionError\nexcept KeyError:\n    pass",
    ],
}


TREE = "class Node:\n    def __init__(self, data):\n        self.data, self.left, self.right = data, None, None\ndef size(n):\n    return 0 if n is None else 1 + size(n.left) + size(n.right)\n"
OF_THE_CANDIDATE: dict[str, dict[str, Any]] = {
    "a function with a built-in name": {"code": "def sum(a, b):\n    return a - b", "test_list": ["assert sum(10, 15) == -5"]},
    "a helper with one": {
        "code": "max = lambda x: 0\ndef f(x):\n    return [max(x)]", "test_list": ["assert f([1]) == [0] and len(f([1])) == 1 and max([4]) == 0"],
    },
    "objects in the setup": {
        "code": TREE, "test_setup_code": "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)\nother = Node(4)",
        "test_list": ["assert size(root) == 3", "assert size(other) == 1 and size(None) == 0"],
    },
    "a loop in the setup": {
        "code": TREE, "test_setup_code": "import math\ncount = 4\nroot = None\nnodes = []\nfor i in range(count):\n    new = Node(i)\n    new.left, root = root, new\n    nodes.append(new)",
        "test_list": ["assert size(root) == count == math.floor(4.5)", "assert [size(one) for one in nodes] == [1, 2, 3, 4]"],
    },
    "functions in the setup": {
        "code": TREE, "test_setup_code": "def grown(n):\n    new = Node(0)\n    new.left = n\n    return new\ndef twice(n):\n    return 2 * n\nhalf = lambda n: n / 2",
        "test_list": ["assert twice(size(grown(grown(None)))) == 4 == half(8)"],
    },
    "a class in the setup": {
        "code": "def area(shape):\n    return shape.a * shape.b", "test_setup_code": "class Box:\n    def __init__(self, a, b):\n        self.a, self.b = a, b",
        "test_list": ["assert area(Box(2, 3)) == 6 and Box(2, 3).a == 2 and Box(2, 3) != Box(2, 3)"],
    },
    "imports behind the setup": {
        "code": "def f(x):\n    return x", "test_setup_code": "d = OrderedDict(a=floor(1.5))", "test_imports": ["from math import *", "from collections import OrderedDict"],
        "test_list": ["assert f(dict(d)) == {'a': 1}"],
    },
    "a function that is passed on": {
        "code": "def double(x):\n    return 2 * x\ndef each(f, xs):\n    return [f(x) for x in xs]", "test_setup_code": "g = double",
        "test_list": ["assert each(g, [1, 2]) == [2, 4] and g(3) == 6"],
    },
}  # fmt: skip


@pytest.mark.parametrize("what", OF_THE_CANDIDATE)
def test_what_the_solution_defines_is_the_candidates(what: str, tmp_path: Path) -> None:
    needs_sandbox()
    examples = [sentence(number) for number in (2, 3, 4)]
    made = task("mbpp", data=written(tmp_path / "d", [*examples, sentence(11, **OF_THE_CANDIDATE[what])]))
    (problem,) = made.problems()
    right = problem.data["code"]
    wrong = [
        re.sub(r"^( *)return .*", r"\1return 7", right, flags=re.MULTILINE),
        "from builtins import sum, max\n", "", "class Node: pass\nimport os\nos._exit(0)",
    ]  # fmt: skip
    found = scores_of(made, problem, right, *wrong)
    assert [(one.verdict, one.detail) for one in found[:1]] == [("passed", "")]
    assert {one.verdict for one in found[1:]} == {"failed"}


@pytest.fixture
def mbpp(tmp_path: Path) -> Path:
    lines = [sentence(number) for number in (1, 2, 3, 4, 11, 12, 601)]
    return written(tmp_path / "mbpp.jsonl", [*lines, sentence(13, **PAIRS), sentence(14, **FORMS)])


def test_mbpps_own_solutions_pass(mbpp: Path, tmp_path: Path) -> None:
    needs_sandbox()
    found = measured(task("mbpp", data=mbpp), tmp_path / "e", lambda problem, _: [problem.data["code"]])
    assert (found["pass@1"].measured.value, found["pass@1"].measured.problems) == (1.0, 4)


def test_other_code_fails_mbpp(mbpp: Path) -> None:
    needs_sandbox()
    made = task("mbpp", data=mbpp)
    wrong = [
        "def add(n):\n    return n\n", "def other(n):\n    return n + 11\n", "", "import os\nos._exit(0)",
        "class Yes:\n    def __eq__(self, o): return True\ndef add(n): return Yes()",
        "import builtins\nbuiltins.AssertionError = None\ndef add(n): return 0",
    ]  # fmt: skip
    assert {score.verdict for score in scores_of(made, made.problems()[0], *wrong)} == {"failed"}


def test_mbpp_is_asked_with_three_examples(mbpp: Path) -> None:
    made = task("mbpp", data=mbpp)
    problem = made.problems()[0]
    assert [one.id for one in made.problems()] == ["MBPP/11", "MBPP/12", "MBPP/13", "MBPP/14"]
    (row,) = made.rows(problem, PromptStyle.COMPLETION, Sampling())
    prompt = row["prompt"]
    assert prompt.count("[BEGIN]\n") == 4
    assert prompt.count("\n[DONE]\n\n") == 3
    assert prompt.endswith("assert add(0) == 11\nassert add(1) == 12\n[BEGIN]\n")
    assert "\r" not in prompt
    assert row["parameters"]["stop"] == ["[DONE]"]
    (row,) = made.rows(problem, PromptStyle.DIALOG, Sampling())
    assert [one["role"] for one in row["messages"]] == ["user", "assistant"] * 3 + ["user"]
    assert made.completion(problem, "def f(): 1\n[DONE]\nmore", PromptStyle.COMPLETION) == "def f(): 1\n"


def test_mbpp_without_its_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no problem 3, 4"):
        task("mbpp", data=written(tmp_path / "a", [sentence(2), sentence(11)])).problems()
    with pytest.raises(SetupError, match="11 to 510"):
        task("mbpp", data=written(tmp_path / "b", [sentence(n) for n in (2, 3, 4)])).problems()


MISSING = {
    "task_id": "SingleLineInfilling/T/0/L1",
    "entry_point": "mean",
    "prompt": "def mean(values):\n    total = sum(values)\n",
    "suffix": "    return total / count\n",
    "canonical_solution": "    count = len(values)\n",
    "test": "def check(candidate):\n    assert candidate([1, 3]) == 2\n",
}


@pytest.mark.parametrize(
    ("text", "exact", "passed"),
    [
        ("    count = len(values)\n    more = 1\n", 1.0, 1.0),
        ("    count = len(values)", 1.0, 1.0),
        ("    count = 0 + len(values)\n", 0.0, 1.0),
        ("    count = 1\n", 0.0, 0.0),
        ("count = len(values)\n", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_a_line_is_filled_in(text: str, exact: float, passed: float, tmp_path: Path) -> None:
    needs_sandbox()
    made = task("infilling", data=written(tmp_path / "d", [MISSING]), order="psm")
    (problem,) = made.problems()
    (score,) = scores_of(made, problem, made.completion(problem, text, PromptStyle.COMPLETION))
    assert score.values == {"exact": exact, "passed": passed}
    assert [metric.name for metric in made.metrics] == ["single-line/PSM", "exact match"]


def test_exact_matches_need_no_code_to_run(tmp_path: Path) -> None:
    span = {
        **MISSING,
        "canonical_solution": "sum(values)\n    count = len(",
        "prompt": "def mean(values):\n    total = ",
    }
    options = {"data": str(written(tmp_path / "d", [span])), "kind": "random-span"}
    made = registry.create("infilling", options)
    (problem,) = made.problems()
    text = "sum(values)\n    count = len("
    assert made.completion(problem, text, PromptStyle.COMPLETION) == text
    assert [one.values["exact"] for one in scores_of(made, problem, text, text + " ", None)] == [1.0, 0.0, 0.0]
    (row,) = made.rows(problem, PromptStyle.DIALOG, Sampling())
    assert (row["prefix"], row["suffix"]) == (span["prompt"], span["suffix"])
    assert [metric.name for metric in made.metrics] == ["exact match"]


IN_LANGUAGES = {
    "cpp": (
        "#include <assert.h>\n#include <stdio.h>\n#include <stdlib.h>\nlong square(long n) {\n", "    return n * n;\n",
        "}\nint main() {\n    auto candidate = square;\n    assert(candidate((3)) == (9));\n}\n", "    exit(0);\n",
    ),
    "java": (
        "import java.util.*;\nimport org.javatuples.*;\nclass Problem {\n    public static long square(long n) {\n",
        "        return n * n;\n",
        "    }\n    public static void main(String[] args) {\n    assert(square(3l) == (9l));\n    }\n\n}\n",
        "        System.exit(0); return 0;\n",
    ),
    "js": (
        "function square(n){\n", "  return n * n;\n}\n",
        "const assert = require('node:assert');\nfunction test() {\n  let candidate = square;\n  assert.deepEqual(candidate(3), 9);\n}\ntest();", "  process.exit(0);\n}\n",
    ),
    "pl": (
        "sub square {\n    my($n) = @_;\n", "    return $n * $n;\n}\n",
        'use Test::Deep;\n\nsub test {\n    if(eq_deeply(square(3), 9)) { print "ok!" } else { exit 1; }\n}\n\ntest();', "    exit 0;\n}\n",
    ),
    "rs": (
        "fn square(n: isize) -> isize {\n", "    n * n\n",
        "}\n\nfn main() {\n    let candidate = square;\n    assert_eq!(candidate(3), 9);\n}\n", "    std::process::exit(0)\n",
    ),
    "sh": (
        "#!/bin/bash\n# $1 is an integer\nsquare() {\n", "    echo $(( $1 * $1 ))\n",
        '}\n\ncandidate() {\n    square "$@"\n}\n\nset -e\nrun_test() {\n    [[ $(candidate 3) = "9" ]]\n}\n\nrun_test\n',
        "    :\n}\nexit 0\nmore() {\n    :\n",
    ),
}  # fmt: skip
"""Prompt, right body, test, and a body that ends the program with success."""
RUNTIMES = {
    "cpp": ("g++",),
    "java": ("java", "javac"),
    "js": ("node",),
    "pl": ("perl",),
    "rs": ("rustc", "cc"),
    "sh": ("bash",),
}


@pytest.mark.parametrize("language", IN_LANGUAGES)
def test_other_languages(language: str, tmp_path: Path) -> None:
    needs(*RUNTIMES[language])
    if language == "pl" and languages.LANGUAGES["pl"].find() is None:
        pytest.skip("perl's Test::Deep is not installed here")
    prompt, body, test, leaving = IN_LANGUAGES[language]
    line = {
        "name": "T_0",
        "language": language,
        "prompt": prompt,
        "tests": test,
        "stop_tokens": ["\nint main", "\n}x"],
    }
    made = task("multipl-e", data=written(tmp_path / f"{language}.jsonl", [line]))
    (problem,) = made.problems()
    found = scores_of(made, problem, body, leaving, "?")
    assert [score.verdict for score in found] == ["passed", "failed", "failed"]
    assert (problem.id, problem.group, found[0].detail) == (f"{language}/T_0", language, "")
    assert "not come to its end" in found[1].detail


HOSTILE = {
    "a process": "require('child_process').execSync('/usr/bin/true'); return n * n;\n}\n",
    "a socket": "const s = require('net').connect(80, '127.0.0.1'); s.on('error', () => process.exit(1)); return n * n;\n}\n",
    "a file of the machine": "require('fs').readFileSync('/etc/passwd'); return n * n;\n}\n",
    "writing outside": "require('fs').writeFileSync('/program/main.js', ''); return n * n;\n}\n",
    "memory": "let a = []; for (;;) a.push(new Array(1e6).fill(1.5));\n}\n",
    "a message": "console.log('passed'); process.exitCode = 0; throw 1;\n}\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_javascript_fails(what: str) -> None:
    needs("node")
    prompt, _, test, _ = IN_LANGUAGES["js"]
    found, _ = languages.check(
        languages.LANGUAGES["js"], prompt + HOSTILE[what], "\n" + test, Limits(wall_s=30, memory=256 * MIB)
    )
    assert found == "failed"


FORGED = {
    "js": "  const own = require('fs').readFileSync(process.argv[1], 'latin1').match(/[0-9a-f]{32}/)[0]; console.log('\\n' + own); process.exit(0);\n}\n",
    "sh": "    :\n}\n[[ $(< $0) =~ [0-9a-f]{32} ]]; printf '\\n%s\\n' $BASH_REMATCH; exit 0\nmore() {\n    :\n",
    "cpp": "    return 0;\n}\n#define assert(x)\nint more() {\n",
}


@pytest.mark.parametrize("language", FORGED)
def test_forged_verdicts_fail(language: str) -> None:
    needs(*RUNTIMES[language])
    if languages.LANGUAGES[language].find() is None:
        pytest.skip("root's processes are not counted, and nobody can make namespaces here")
    prompt, _, test, _ = IN_LANGUAGES[language]
    found, _ = languages.check(
        languages.LANGUAGES[language], prompt + FORGED[language], "\n" + test, Limits(wall_s=60)
    )
    assert found == "failed"


def test_assertions_that_a_program_switches_off_are_on_again() -> None:
    needs(*RUNTIMES["cpp"])
    prompt, body, test, _ = IN_LANGUAGES["cpp"]
    for off in ("#define NDEBUG\n", "#define NDEBUG\n#include <cassert>\n"):
        for value, expected in ((body, "passed"), ("    return 0;\n", "failed")):
            text = off + prompt + value
            found, _ = languages.check(languages.LANGUAGES["cpp"], text, "\n" + test, Limits(wall_s=60))
            assert found == expected


def test_endless_javascript_is_ended() -> None:
    needs("node")
    prompt, _, test, _ = IN_LANGUAGES["js"]
    found, _ = languages.check(
        languages.LANGUAGES["js"], prompt + "for (;;);\n}\n", "\n" + test, Limits(wall_s=1)
    )
    assert found == "timed out"


HOSTILE_SHELL = {
    "a fork bomb": "bomb() { bomb | bomb & }; bomb; sleep 0.3; false",
    "the machine's files": "cat /etc/passwd /etc/shadow /home/*/.* || false",
    "the network": "echo > /dev/tcp/127.0.0.1/80 || false",
    "ending everything": "kill -9 -1; kill -9 1 $PPID",
    "the verdict": "echo passed; exit 0",
    "a file without end": "yes > x; false",
}


@pytest.mark.parametrize("what", HOSTILE_SHELL)
def test_hostile_shell_fails(what: str) -> None:
    needs("bash")
    if languages.LANGUAGES["sh"].find() is None:
        pytest.skip("root's processes are not counted, and nobody can make namespaces here")
    prompt, _, test, _ = IN_LANGUAGES["sh"]
    program = f"{prompt}{HOSTILE_SHELL[what]}\n"
    before = processes()
    found, _ = languages.check(languages.LANGUAGES["sh"], program, test, Limits(wall_s=2, file_size=MIB))
    assert found in ("failed", "timed out")
    assert processes() == before


def shell_says(program: str, limits: Limits) -> int:
    """The number that a shell program prints before it fails."""
    if languages.LANGUAGES["sh"].find() is None:
        pytest.skip("root's processes are not counted, and nobody can make namespaces here")
    _, detail = languages.check(languages.LANGUAGES["sh"], f"{program}\nexit 3\n", "\n:", limits)
    return int(detail.rpartition("error ")[2])


HOLDING = """
mkfifo go; exec 3<>go
for i in 1 2 3 4 5 6; do
    perl -e '$held = "a" x ({} << 20); open(O, ">", "held.$ARGV[0]"); close(O); sysread(STDIN, $_, 1)' $i <&3 2>/dev/null & pids[i]=$!
done
while kids=0; for p in "${{pids[@]}}"; do kill -0 $p 2>/dev/null && kids=$((kids + 1)); done; held=(held.*); [[ -e $held ]] || held=()
    (( kids > ${{#held[@]}} )); do sleep 0.02; done
echo "error ${{#held[@]}}"
"""


@pytest.mark.parametrize(("mebibytes", "held"), [(2, 6), (100, 0)])
def test_a_shells_processes_share_its_memory(mebibytes: int, held: int) -> None:
    needs("bash", "perl")
    found = shell_says(HOLDING.format(mebibytes), Limits(wall_s=60, memory=512 * MIB))
    assert found == held


def test_a_shell_whose_processes_nobody_counts_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("bash")
    tmp_path.chmod(0o700)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if os.geteuid() == 0:
        with pytest.raises(SetupError, match="Set TMPDIR to a folder that all may enter"):
            shell_says("echo error 1", Limits(wall_s=60))
    else:
        assert shell_says("echo error 1", Limits(wall_s=60)) == 1


def test_a_language_that_nothing_here_runs_is_said(tmp_path: Path) -> None:
    needs_sandbox()
    line = {"name": "T_0", "language": "cobol", "prompt": "", "tests": "", "stop_tokens": []}
    with pytest.raises(SetupError, match="cobol can't be run here"):
        task("multipl-e", data=written(tmp_path / "d.jsonl", [line])).problems()


@pytest.mark.parametrize("key", ["name", "prompt", "tests"])
@pytest.mark.parametrize(("text", "code"), [("\ud800", "d800"), ("a\udfff\ud800b", "dfff")])
def test_half_of_a_character_in_the_data_is_refused(key: str, text: str, code: str, tmp_path: Path) -> None:
    line = {"name": "T_0", "language": "js", "prompt": "p", "tests": "\U0001f600", "stop_tokens": ["\\ud"]}
    whole = registry.create("multipl-e", {"data": str(written(tmp_path / "a.jsonl", [line]))})
    assert [problem.data for problem in whole.problems()] == [line]
    data = written(tmp_path / "d.jsonl", [line, {**line, "name": "T_1", key: text}])
    with pytest.raises(SetupError, match=rf"d.jsonl, line 2 has \\u{code}, half of"):
        registry.create("multipl-e", {"data": str(data)}).problems()


def test_a_problem_with_an_odd_name_keeps_it(tmp_path: Path) -> None:
    line = {"name": "HumanEval_0/a b", "language": "js", "prompt": "p", "tests": "t", "stop_tokens": ["\n}"]}
    made = registry.create("multipl-e", {"data": str(written(tmp_path / "d.jsonl", [line]))})
    (problem,) = made.problems()
    (row,) = made.rows(problem, PromptStyle.COMPLETION, Sampling())
    assert row["id"] == "js/HumanEval_0/a b/0"
    assert made.completion(Problem("x", None, line), "a\n}\nb", PromptStyle.COMPLETION) == "a"
