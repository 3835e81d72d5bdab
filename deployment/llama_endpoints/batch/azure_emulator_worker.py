"""One process of an emulated batch job: `python -P .../azure_emulator_worker.py SCRIPT LOGGING_LEVEL`.

It imports the scoring script by path and calls init() if defined. Each line of standard input is a mini-batch,
{"files": [...], "results": PATH}. Each answer is a line of standard output: {"results": n} after run() returned n items, which
are then lines of PATH, or {"error": "..."}. The script's own output goes to its log.

It is started by path and uses only the standard library, so that the script's imports find only what the script brings.
"""

import ctypes
import importlib.util
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

LONGEST = 1000
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal to get when the parent ends."""


def main(script: Path, level: str) -> None:
    """Answer requests until standard input ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = _kept_for_answers()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=level.upper())
    logging.disable(logging.getLevelName(level.upper()) - 1)  # regardless of levels the script sets
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script)]
    os.chdir(script.parent)
    found: list[ModuleType] = []
    if not _answer(answers, partial(_init, script, found)):
        raise SystemExit(1)
    for line in sys.stdin:
        _answer(answers, partial(_run, found[0], **json.loads(line)))


def _kept_for_answers() -> TextIO:
    """Return the original standard output, and redirect everything else written to it to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, do: Callable[[], dict[str, Any]]) -> bool:
    try:
        answer = do()
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"[:LONGEST]}  # the log has the whole message
    print(json.dumps(answer), file=answers, flush=True)
    return "error" not in answer


def _init(script: Path, found: list[ModuleType]) -> dict[str, Any]:
    module = _imported(script)
    if not callable(getattr(module, "run", None)):
        raise TypeError(f"{script.name} has no function run(mini_batch)")
    if hasattr(module, "init"):
        module.init()
    found.append(module)
    return {}


def _imported(script: Path) -> ModuleType:
    """Import the script under its own name, or another one if that is taken (by a script called json.py, for example)."""
    name = script.stem if script.stem not in sys.modules else f"{script.stem}_of_the_deployment"
    spec = importlib.util.spec_from_file_location(name, script)
    if spec is None or spec.loader is None:
        raise ImportError(f"{script.name} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(module: ModuleType, files: list[str], results: str) -> dict[str, Any]:
    items = module.run(files)
    if _is("pandas", "DataFrame", items):
        items.to_csv(results, sep=" ", header=False, index=False)
    elif isinstance(items, list) or _is("numpy", "ndarray", items):
        Path(results).write_text("".join(f"{item}\n" for item in items), encoding="utf-8")
    else:
        raise TypeError(
            f"run() returned {type(items).__name__}; it must return a list, an array or a DataFrame"
        )
    return {"results": len(items)}


def _is(library: str, kind: str, value: object) -> bool:
    """Whether a value is an instance of a library's class, which implies that the library is imported."""
    of = getattr(sys.modules.get(library), kind, None)
    return isinstance(of, type) and isinstance(value, of)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
