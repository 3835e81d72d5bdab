"""The line that says how long something takes."""

import io
import sys
import time

import pytest

from llama_endpoints.endpoints import polling

TIMEOUT_S = 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, until = Terminal(), time.monotonic() + TIMEOUT_S
    monkeypatch.setattr(sys, "stderr", terminal)
    with polling.progress_line("deployment ep/blue", "look") as tick:
        while "deployment ep/blue: 00:0" not in terminal.getvalue():
            assert time.monotonic() < until
            tick()
            time.sleep(0.01)
    assert "Stopped waiting" not in terminal.getvalue()


def test_who_stops_waiting_is_told_how_to_look_again(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        polling.progress_line("deployment ep/blue", "llama-endpoints status"),
    ):
        raise KeyboardInterrupt
    said = capsys.readouterr().err
    assert said.endswith("The operation continues in Azure; check it with: llama-endpoints status\n")


def test_dots_of_others_go_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    with polling.silent():
        sys.stdout.write("...")
        sys.stderr.write("\x1b[39m\n")
    assert capsys.readouterr() == ("", "")
