"""The command `llama-endpoints`, in this process: what it prints and how it ends, without the seconds that each start takes."""

import os
import subprocess
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path

from click.testing import CliRunner

from llama_endpoints.cli.main import main

Done = subprocess.CompletedProcess[str]


def run(
    *arguments: str | Path, cwd: Path | None = None, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> Done:
    """One call. No LLAMA_ variable of the tests' own environment reaches it.

    Args:
        arguments: of the command.
        cwd: where it runs.
        stdin: what it reads.
        env: variables besides.
    """
    ours: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith("LLAMA_"))
    words = list(map(str, arguments))
    with chdir(cwd or Path.cwd()):
        result = CliRunner().invoke(main, words, input=stdin, env={**ours, **(env or {})})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)
