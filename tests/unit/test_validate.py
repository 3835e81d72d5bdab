"""`llama-endpoints validate`: every good file passes, every broken one is refused in the right line and words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployment.validate.check import check
from deployment.validate.findings import Finding, Rule

ROOT = Path(__file__).resolve().parents[2]
BROKEN: dict[str, Any] = yaml.safe_load((ROOT / "tests/unit/broken_specs.yml").read_text(encoding="utf-8"))
CASES: list[dict[str, Any]] = BROKEN["cases"]
IN_TESTS_OF_THEIR_OWN = {Rule.OFFER, Rule.OFFER_UNKNOWN, Rule.ROOT_USER}
"""Below: rules that no edit of one file can break."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good files, and the project's real scripts."""
    root = tmp_path_factory.mktemp("tree")
    (root / "score").symlink_to(ROOT / "score")
    for name, text in BROKEN["good"].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def edited(tree: Path) -> Iterator[Any]:
    """Writes a file of the tree, and puts it back afterwards."""
    before: dict[Path, bytes] = {}

    def edit(name: str, content: bytes) -> Path:
        path = tree / name
        before.setdefault(path, path.read_bytes())
        path.write_bytes(content)
        return path

    yield edit
    for path, content in before.items():
        path.write_bytes(content)


def content_of(case: dict[str, Any], good: str) -> bytes:
    if "hex" in case:
        return bytes.fromhex(case["hex"])
    if "text" in case:
        return str(case["text"]).encode()
    assert case["old"] in good, "the case does not change its file"
    return good.replace(case["old"], case["new"], 1).encode()


def line_of(case: dict[str, Any], content: bytes) -> int:
    marker = case.get("at", str(case.get("new", "")).split("\n")[0])
    lines = content.decode("latin-1").split("\n")
    return next(number for number, line in enumerate(lines, start=1) if marker in line)


def test_the_projects_own_files_pass() -> None:
    report = check([ROOT / "yaml", ROOT / "environments"])
    assert report.files >= 9
    assert [finding.shown() for finding in report.findings] == []


def test_good_files_pass(tree: Path) -> None:
    report = check([tree])
    assert report.files == len(set(BROKEN["files"].values())) + 1, (
        "one of each kind, and a cluster without GPUs"
    )
    assert [finding.shown() for finding in report.findings] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_a_broken_file_is_refused(case: dict[str, Any], tree: Path, edited: Any) -> None:
    name = BROKEN["files"][case["file"]]
    content = content_of(case, (tree / name).read_text(encoding="utf-8"))
    path = edited(name, content)
    found = check([path]).findings
    expected = [finding for finding in found if finding.rule == case["rule"]]
    assert expected, [finding.shown() for finding in found]
    hits = [
        finding
        for finding in expected
        if finding.field == case.get("field", "") and case["says"] in finding.message
    ]
    assert hits, [finding.shown() for finding in expected]
    assert hits[0].line == line_of(case, content), hits[0].shown()
    others = {finding.rule for finding in found} - {case["rule"], *case.get("also", ())}
    assert not others, [finding.shown() for finding in found]


def test_every_rule_can_be_broken() -> None:
    assert {case["rule"] for case in CASES} | IN_TESTS_OF_THEIR_OWN == set(Rule)
    assert not {case["rule"] for case in CASES} & IN_TESTS_OF_THEIR_OWN


def test_cases_have_names_of_their_own() -> None:
    assert len({case["case"] for case in CASES}) == len(CASES)


def found_in(path: Path) -> list[Finding]:
    return list(check([path]).findings)
