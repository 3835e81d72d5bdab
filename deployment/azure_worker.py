"""One process of a batch job, as Azure runs them: `python -m deployment.azure_worker SCRIPT LOGGING_LEVEL`.

It imports the scoring script by its path and calls init(). Then each line of standard input is a mini-batch,
{"files": [...], "results": PATH}, and the answer a line of standard output: {"results": n} where run() has returned n
items, which are lines of PATH then, or {"error": "..."}. What the script prints goes where its log goes.
"""

import ctypes
import importlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

LONGEST = 1000
PR_SET_PDEATHSIG = 1
"""Of prctl(2): a signal for when the parent ends, however it does."""


def main(script: Path, level: str) -> None:
    """Answer until standard input ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = _kept_for_answers()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=level.upper())
    logging.disable(logging.getLevelName(level.upper()) - 1)  # (whatever level a script gives its own loggers)
    sys.path.insert(0, str(script.parent))
    os.chdir(script.parent)
    if not _answer(answers, partial(_init, script.stem)):
        raise SystemExit(1)
    for line in sys.stdin:
        _answer(answers, partial(_run, script.stem, **json.loads(line)))


def _kept_for_answers() -> TextIO:
    """Standard output as it was; under its name everything else goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, do: Callable[[], dict[str, Any]]) -> bool:
    try:
        told = do()
    except Exception as error:
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {error}"[:LONGEST]}  # (the log has all of it)
    print(json.dumps(told), file=answers, flush=True)
    return "error" not in told


def _init(module: str) -> dict[str, Any]:
    importlib.import_module(module).init()
    return {}


def _run(module: str, files: list[str], results: str) -> dict[str, Any]:
    items = sys.modules[module].run(files)
    if not isinstance(items, list):
        raise TypeError(f"run() returned {type(items).__name__}, and must return a list")
    Path(results).write_text("".join(f"{item}\n" for item in items), encoding="utf-8")
    return {"results": len(items)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
