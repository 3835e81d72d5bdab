"""Options that are settings: their help names every value, and what they set is set nowhere else."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import hypothesis
import pytest
from click.testing import CliRunner
from hypothesis import strategies as st

from llama_endpoints.cli.main import main
from llama_endpoints.render.monitoring import Collection, variables
from llama_serving.batch import job
from llama_serving.errors import SetupError
from llama_serving.settings import DTYPES, ENGINES, Settings


def options(command: click.Command = main, path: str = "") -> Iterator[tuple[str, click.Option]]:
    """Every option of every command, with how it is written."""
    for one in command.params:
        if isinstance(one, click.Option):
            yield f"{path} {one.opts[-1]}".strip(), one
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from options(inner, f"{path} {name}".strip())


OPTIONS = dict(options())
SET = {
    name: found[1] for name, one in OPTIONS.items() if (found := re.match("LLAMA_([A-Z_]+):", one.help or ""))
}


def choices(setting: str) -> list[str]:
    """The values of a setting that has some; none of one that takes a number."""
    try:
        Settings.from_environment({f"LLAMA_{setting}": "no such value"})
    except SetupError as error:
        found = re.search(r"must be one of (.*)\.$", str(error))
        return found[1].split(", ") if found else []
    return []


def test_the_options_that_set_something_are_found() -> None:
    assert choices("ENGINE") == list(ENGINES)
    assert choices("DTYPE") == list(DTYPES)
    assert {"serve --engine", "score --engine", "batch --engine", "batch --dtype"} <= SET.keys()


@pytest.mark.parametrize("name", SET)
def test_help_names_every_value_of_the_setting(name: str) -> None:
    text = OPTIONS[name].help or ""
    values = choices(SET[name])
    assert not values or text == f"LLAMA_{SET[name]}: {', '.join(values)}."


NUMBERS = [name for name, one in OPTIONS.items() if isinstance(one.type, click.types.FloatParamType)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("given", ["nan", "-nan", "inf", "-inf", "1e999"])
def test_no_option_takes_a_number_that_is_not_finite(name: str, given: str) -> None:
    """NaN is within every range: `rollout --max-error-rate nan` would let everything pass."""
    with pytest.raises(click.BadParameter):
        OPTIONS[name].type.convert(given, OPTIONS[name], None)


def test_options_that_are_numbers_are_found() -> None:
    assert {"rollout --max-error-rate", "rollout --over", "package --temperature", "render --collect"} <= set(
        NUMBERS
    )


@pytest.mark.parametrize("given", ["0", "1e-10", "9e-10", "-0.5", "1.0000001", "2"])
def test_a_share_that_the_server_would_refuse_is_refused(given: str) -> None:
    with pytest.raises(click.BadParameter):
        OPTIONS["render --collect"].type.convert(given, OPTIONS["render --collect"], None)


@hypothesis.given(st.floats(1e-9, 1))
def test_a_share_that_is_taken_is_one_of_the_server_s(share: float) -> None:
    taken = OPTIONS["render --collect"].type.convert(str(share), OPTIONS["render --collect"], None)
    settings = Settings.from_environment(variables(Collection(taken)))
    assert settings.collect_rate == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("name", [name for name, one in OPTIONS.items() if isinstance(one.type, click.Choice)])
def test_help_shows_every_choice(name: str) -> None:
    one = OPTIONS[name]
    with click.Context(click.Command("x", params=[one]), max_content_width=1000) as context:
        text, _ = one.get_help_record(context) or ("", "")
    assert isinstance(one.type, click.Choice)
    for value in one.type.choices:
        assert re.search(rf"\b{re.escape(str(value))}\b", f"{text} {one.help}")


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_says_what_it_does(name: str) -> None:
    assert (OPTIONS[name].help or "").strip().endswith(".")


@pytest.mark.parametrize(
    ("variable", "flags", "expected"),
    [
        (None, (), 64),
        (" ", (), 64),
        ("3", (), 3),
        (None, ("--concurrency", "5"), 5),
        ("3", ("--concurrency", "5"), 5),
    ],
)
def test_batch_has_a_default_of_its_own_and_leaves_the_environment_alone(
    variable: str | None, flags: tuple[str, ...], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Settings] = []
    monkeypatch.delenv("LLAMA_MAX_NUM_SEQS", raising=False)
    if variable is not None:
        monkeypatch.setenv("LLAMA_MAX_NUM_SEQS", variable)
    monkeypatch.setattr(job, "about", lambda _, settings: seen.append(settings) or {})
    before = dict(os.environ)
    asked = (
        "batch",
        "--model",
        "nano",
        "--input",
        str(tmp_path / "nothing"),
        "--output",
        str(tmp_path / "out"),
    )
    assert CliRunner().invoke(main, [*asked, *flags]).exit_code == 2, "there is no input"
    assert [settings.max_num_seqs for settings in seen] == [expected]
    assert dict(os.environ) == before
