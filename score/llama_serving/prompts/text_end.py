"""Where the text of one sequence ends: at a stop string, where an editor wants it to, or out of patience."""

import time
from collections.abc import Callable

from llama_serving.contract.request import Request
from llama_serving.prompts.builder import Prompt
from llama_serving.prompts.editor_stops import EditorStops, Gap
from llama_serving.prompts.stops import StopFinder


class TextEnd:
    """Passes text through up to its end. The server has one for what it shows, the engine one to stop in the same step."""

    def __init__(self, stops: StopFinder, editor: EditorStops | None = None) -> None:
        self._stops, self._editor = stops, editor

    @classmethod
    def of(cls, request: Request, prompt: Prompt) -> "TextEnd":
        """Return the end of a request's text."""
        parameters = request.parameters
        stops = StopFinder(parameters.stop or ())
        if not parameters.editor_stops:
            return cls(stops)
        return cls(stops, EditorStops(Gap.of(prompt.before, prompt.after, request.min_indent)))

    @property
    def found(self) -> bool:
        """Whether the text has ended."""
        return self._stops.found or (self._editor is not None and self._editor.found)

    @property
    def stopped_by(self) -> str:
        """The stop string that ended the text; empty if none did."""
        return self._stops.by

    def push(self, text: str) -> str:
        """Return the text that can be shown now. Once `found`, there is no more."""
        if self.found:
            return ""
        text = self._stops.push(text)
        if self._editor is None:
            return text
        shown = self._editor.push(text)
        return shown + (self._editor.finish() if self._stops.found else "")

    def finish(self, rest: str = "", *, cut_off: bool = False) -> str:
        """Return the text that was held back, at the end.

        Args:
            rest: the last text, which was not pushed.
            cut_off: the text would have gone on.
        """
        if self.found:
            return ""
        last = self._stops.push(rest) + self._stops.finish()
        if self._editor is None:
            return last
        return self._editor.push(last) + self._editor.finish(cut_off=cut_off)


class Patience:
    """Runs out some time after the first text, once there is a line break.

    Args:
        seconds: None is for ever.
        clock: seconds that only increase.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._since: float | None = None
        self._line_break = False

    def is_over(self, text: str) -> bool:
        """Return whether it is over, now that this text has come."""
        if self._seconds is None:
            return False
        now = self._clock()
        self._since = now if self._since is None else self._since
        self._line_break = self._line_break or "\n" in text
        return self._line_break and now - self._since >= self._seconds
