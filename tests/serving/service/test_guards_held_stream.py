"""What a stream holds back: nothing leaves unchecked, nothing is lost, and nothing waits for ever."""

from hypothesis import given
from hypothesis import strategies as st

from llama_serving.service.guards.held_stream import HeldStream, Windows

PIECES = st.lists(
    st.tuples(st.text("ab \n", max_size=12), st.integers(0, 6).map(lambda eighths: eighths / 8)), max_size=40
)
WINDOWS = st.builds(Windows, st.integers(1, 30), st.integers(0, 20), st.just(1.0))
MARK = "XYZ"


class Run:
    """A stream under a clock of its own; every check passes at once, unless the text has `MARK`."""

    def __init__(self, windows: Windows) -> None:
        self.held, self.now = HeldStream(windows), 0.0
        self.text = self.out = ""
        self.checked = 0
        self.left_at: list[float] = []
        self.blocked = False

    def step(self) -> None:
        passage = self.held.due(self.now)
        if passage is not None:
            assert passage.start == self.checked
            if MARK in passage.text:
                self.blocked = True
                return
            self.checked = len(passage.text)
            self.held.passed(passage)
        self.out += (text := self.held.take(self.now))
        self.left_at += [self.now] * len(text)
        assert len(self.out) <= self.checked
        assert self.held.left == len(self.out)

    def see(self, piece: str, after_s: float) -> None:
        """Let time pass as a server does, which wakes when something is due; then a piece comes."""
        until = self.now + after_s
        while not self.blocked and (patience := self.held.patience(self.now)) is not None:
            if self.now + patience > until:
                break
            self.now += patience
            self.step()
        self.now = until
        self.text += piece
        self.held.see(self.text, self.now)
        if not self.blocked:
            self.step()


@given(PIECES, WINDOWS)
def test_a_text_that_passes_leaves_whole_and_in_time(pieces: list[tuple[str, float]], windows: Windows) -> None:
    run, came = Run(windows), list[float]()
    for piece, after_s in pieces:
        run.see(piece, after_s)
        came += [run.now] * len(piece)
    late = [left - there for left, there in zip(run.left_at, came, strict=False)]
    assert all(waited <= 2 * windows.max_delay_s + 1e-6 for waited in late)
    assert len(came) - len(run.left_at) <= windows.window + windows.overlap
    last = run.held.last(run.text)
    assert last.final
    run.held.passed(last)
    assert run.out + run.held.take_all() == run.text


@given(PIECES, PIECES, st.integers(3, 20), st.integers(1, 30), st.sampled_from((0.5, 1.0, 1e9)), st.data())
def test_of_what_is_blocked_nothing_leaves(  # noqa: PLR0917  (what is drawn)
    before: list[tuple[str, float]],
    after: list[tuple[str, float]],
    overlap: int,
    window: int,
    max_delay_s: float,
    data: st.DataObject,
) -> None:
    """However the text is divided, in time that is short."""
    run = Run(Windows(window, overlap, max_delay_s))
    whole = "".join(piece for piece, _ in before) + MARK + "".join(piece for piece, _ in after)
    while run.text != whole:
        rest = whole[len(run.text) :]
        run.see(rest[: data.draw(st.integers(1, len(rest)))], 0.125)
    last = run.held.last(run.text)
    assert run.blocked or MARK in last.text
    assert run.out == whole[: len(run.out)]
    assert len(run.out) <= whole.index(MARK)


def test_what_is_behind_the_text_is_checked_at_the_end() -> None:
    held = HeldStream(Windows(1, 0, 1.0))
    held.see("shown", 0.0)
    passage = held.due(0.0)
    assert passage is not None
    held.passed(passage)
    assert held.take(0.0) == "shown"
    assert (held.last("shown, cut off").recent(0), held.last("shown").has_news) == (", cut off", False)


def test_time_that_passes_between_check_and_departure_lets_nothing_out() -> None:
    held = HeldStream(Windows(window=10, overlap=2, max_delay_s=1.0))
    held.see("abcd", 0.0)
    assert held.due(0.875) is None
    assert held.take(1.0) == ""
    assert held.patience(1.0) == 0.0
    passage = held.due(1.0)
    assert passage is not None
    held.see("abcdef", 1.5)
    held.passed(passage)
    assert held.take(3.0) == "ab", "what follows the rest is not checked yet"
    passage = held.due(3.0)
    assert passage is not None
    held.passed(passage)
    assert held.take(3.0) == "cdef"
