"""`llama-endpoints validate`: every good file passes, every broken one is refused in the right line and words."""

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from llama_endpoints.azure import schemas
from llama_endpoints.cli.main import main
from llama_endpoints.planning import skus
from llama_endpoints.planning.skus import Offer
from llama_endpoints.validate.document import Place, read
from llama_endpoints.validate.findings import Finding, Level, Rule
from llama_endpoints.validate.kinds import kind_of
from llama_endpoints.validate.report import RULES, check
from llama_endpoints.validate.spec_files import SpecFile, SpecTree, specs_of
from llama_serving.catalog import Fact
from tests.support.paths import ROOT

BROKEN: dict[str, Any] = yaml.safe_load(
    (ROOT / "tests/deployment/validate/broken_specs.yml").read_text(encoding="utf-8")
)
CASES: list[dict[str, Any]] = BROKEN["cases"]
SPECS = [name for name in BROKEN["files"].values() if not name.endswith("Dockerfile")]
IN_TESTS_OF_THEIR_OWN = {Rule.OFFER, Rule.ROOT_USER}
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
    if case.get("text") == "NEST":
        return b"a: " + b"[" * 10_000
    if "text" in case:
        return str(case["text"]).encode()
    assert case["old"] in good, "the case does not change its file"
    return good.replace(case["old"], case["new"], 1).encode()


def apply(case: dict[str, Any], tree: Path, edited: Any) -> Path:
    """Edits what the case edits, and says which file to check."""
    name = BROKEN["files"][case["file"]]
    edited(name, content_of(case, (tree / name).read_text(encoding="utf-8")))
    for other, old, new in case.get("edits", ()):
        text = (tree / BROKEN["files"][other]).read_text(encoding="utf-8")
        assert old in text
        edited(BROKEN["files"][other], text.replace(old, new, 1).encode())
    return tree / str(BROKEN["files"][case.get("checks", case["file"])])


def line_of(case: dict[str, Any], content: bytes) -> int:
    marker = case.get("at", str(case.get("new", "")).split("\n")[0])
    lines = content.decode("latin-1").split("\n")
    return next(number for number, line in enumerate(lines, start=1) if marker in line)


def test_good_files_pass(tree: Path) -> None:
    report = check([tree])
    assert report.files == len(SPECS) + 1, "one of each kind, and a cluster without GPUs"
    assert [finding.shown() for finding in report.findings] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_a_broken_file_is_refused(case: dict[str, Any], tree: Path, edited: Any) -> None:
    path = apply(case, tree, edited)
    found = check([path]).findings
    expected = [finding for finding in found if finding.rule == case["rule"]]
    assert expected, [finding.shown() for finding in found]
    hits = [
        finding
        for finding in expected
        if finding.field == case.get("field", "") and case["says"] in finding.message
    ]
    assert hits, [finding.shown() for finding in expected]
    assert hits[0].line == line_of(case, path.read_bytes()), hits[0].shown()
    others = {finding.rule for finding in found} - {case["rule"], *case.get("also", ())}
    assert not others, [finding.shown() for finding in found]


@pytest.mark.parametrize("case", BROKEN["fine"], ids=lambda case: case["case"])
def test_nothing_is_found_where_nothing_is_wrong(case: dict[str, Any], tree: Path, edited: Any) -> None:
    assert [finding.shown() for finding in check([apply(case, tree, edited)]).findings] == []


def test_every_rule_can_be_broken() -> None:
    assert {case["rule"] for case in CASES} | IN_TESTS_OF_THEIR_OWN == set(Rule)
    assert not {case["rule"] for case in CASES} & IN_TESTS_OF_THEIR_OWN


def test_cases_have_names_of_their_own() -> None:
    for cases in (CASES, BROKEN["fine"]):
        assert len({case["case"] for case in cases}) == len(cases)


# --- what no edit of one file shows ---------------------------------------------------------------


def with_sku(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    """The size of the good deployment, with other facts."""
    name = "Standard_NC24ads_A100_v4"
    changed = {**skus.SKUS, name: replace(skus.SKUS[name], **changes)}
    monkeypatch.setattr(skus, "SKUS", changed)
    return name


def online_findings(tree: Path) -> list[Finding]:
    return list(check([tree / BROKEN["files"]["online"]]).findings)


def test_a_size_that_is_not_for_managed_endpoints(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = with_sku(monkeypatch, offered={Offer.MANAGED_ONLINE: Fact(False, "a test")})
    (finding,) = online_findings(tree)
    assert (finding.rule, finding.level, finding.field) == (Rule.OFFER, Level.ERROR, "instance_type")
    assert f"is {size}, which is not offered for managed_online (a test)" in finding.message


def test_a_size_of_which_nobody_knows(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_sku(monkeypatch, offered={})
    (finding,) = online_findings(tree)
    assert (finding.rule, finding.level) == (Rule.OFFER_UNKNOWN, Level.WARNING)


def test_a_model_that_needs_more_than_there_is(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = replace(skus.SKUS["Standard_NC24ads_A100_v4"].gpu, memory_mib=15_000)
    with_sku(monkeypatch, gpu=gpu)
    (finding,) = online_findings(tree)
    assert finding.rule is Rule.MEMORY
    assert "of 13,800 MiB usable" in finding.message


@pytest.mark.parametrize(
    ("size", "rules"), [("STANDARD_NC24ADS_A100_V4", []), ("STANDARD_NC16AS_T4_V3", [Rule.MEMORY])]
)
def test_a_size_as_microsoft_s_list_has_it(tree: Path, edited: Any, size: str, rules: list[Rule]) -> None:
    path = BROKEN["files"]["online"]
    edited(path, BROKEN["good"][path].replace("Standard_NC24ads_A100_v4", size).encode())
    assert [finding.rule for finding in online_findings(tree)] == rules


def test_an_image_that_runs_as_root(tree: Path, edited: Any) -> None:
    text = BROKEN["good"]["environments/batch/Dockerfile"]
    edited("environments/batch/Dockerfile", text.replace("USER llama", "USER root").encode())
    (finding,) = check([tree / BROKEN["files"]["batch-image"]]).findings
    assert (finding.rule, finding.line, finding.level) == (Rule.ROOT_USER, 5, Level.WARNING)


@pytest.mark.parametrize(
    "base", ["ubuntu", "ubuntu:latest", "localhost:5000/ubuntu", "--platform=linux/amd64 ubuntu AS x"]
)
def test_an_image_on_another_one_tomorrow(tree: Path, edited: Any, base: str) -> None:
    edited("environments/batch/Dockerfile", f"FROM {base}\nUSER llama\n".encode())
    (finding,) = check([tree / BROKEN["files"]["batch-image"]]).findings
    assert (finding.rule, finding.field) == (Rule.UNPINNED, "build")


def test_a_dockerfile_that_is_no_text(tree: Path, edited: Any) -> None:
    edited("environments/batch/Dockerfile", b"FROM \xff")
    (finding,) = check([tree / BROKEN["files"]["batch-image"]]).findings
    assert (finding.rule, finding.field) == (Rule.PATH, "build")
    assert "cannot be read" in finding.message


def test_the_images_variables_count(tree: Path, edited: Any) -> None:
    """What the Dockerfile sets holds where the deployment says nothing."""
    text = BROKEN["good"][BROKEN["files"]["online"]]
    alone = text.replace("  GUNICORN_CMD_ARGS: --threads 20 --graceful-timeout 180\n", "").replace(
        '  WORKER_COUNT: "1"\n', ""
    )
    path = edited(BROKEN["files"]["online"], alone.encode())
    assert not check([path]).findings
    docker = BROKEN["good"]["environments/online/Dockerfile"]
    edited("environments/online/Dockerfile", docker.replace("WORKER_COUNT=1", "WORKER_COUNT=4").encode())
    assert {finding.rule for finding in check([path]).findings} == {Rule.WORKERS}


def test_a_file_that_is_given_comes_before_one_that_lies_around(tree: Path, tmp_path: Path) -> None:
    """Files of another place are looked up among those given, too."""
    text = BROKEN["good"][BROKEN["files"]["online"]].replace("../../score", str(ROOT / "score"))
    path = tmp_path / "deployment.yml"
    path.write_text(text, encoding="utf-8")
    alone = {finding.field for finding in check([path]).findings if finding.rule is Rule.NOT_FOUND}
    assert alone == {"model", "endpoint_name", "environment"}
    together = check([path, *(tree / BROKEN["files"][name] for name in ("model", "endpoint", "image"))])
    assert not together.findings


# --- the command ----------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["validate", *map(str, arguments)])


def test_good_files_end_with_0(tree: Path) -> None:
    done = run(tree / "yaml/online")
    assert (done.exit_code, done.output) == (0, "6 files: 0 errors, 0 warnings.\n")


def test_errors_end_with_1_and_come_file_by_file_and_line_by_line(tree: Path, edited: Any) -> None:
    text = BROKEN["good"][BROKEN["files"]["online"]]
    path = edited(
        BROKEN["files"]["online"],
        text.replace("instance_count: 1", "instance_count: 99").replace('"178"', '"1000"').encode(),
    )
    done = run(path, tree / "yaml/online/endpoint.yml", path)
    lines = done.output.splitlines()
    assert done.exit_code == 1
    assert lines[0].startswith(f"{path}:10: instance_count: must be an integer from 1 to 50, not 99.")
    assert lines[1].startswith(f"{path}:21: environment_variables.LLAMA_DEADLINE_S: warning: is 1000 s")
    assert lines[2:] == ["2 files: 1 error, 1 warning."]


def test_warnings_end_with_0_and_strictly_with_1(tree: Path, edited: Any) -> None:
    text = BROKEN["good"][BROKEN["files"]["compute"]]
    path = edited(BROKEN["files"]["compute"], text.replace("min_instances: 0", "min_instances: 1").encode())
    done = run(path)
    assert done.exit_code == 0
    assert f"{path}:6: min_instances: warning: keeps 1 machines" in done.output
    assert done.output.endswith("1 file: 0 errors, 1 warning.\n")
    assert run("--strict", path).exit_code == 1


def test_json_is_one_object_a_finding(tree: Path, edited: Any) -> None:
    schema = BROKEN["good"][BROKEN["files"]["endpoint"]].splitlines()[0]
    path = edited(BROKEN["files"]["endpoint"], f"{schema}\nname: a\nname: b\n".encode())
    done = run("--json", path)
    assert done.exit_code == 1
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["line"], one["field"], one["rule"], one["level"]) for one in findings] == [
        (3, "name", "duplicate-key", "warning"),
        (3, "name", "name", "error"),
    ]
    assert set(findings[0]) == {"file", "line", "field", "rule", "level", "message"}
    assert done.stderr == "1 file: 1 error, 1 warning.\n"


@pytest.mark.parametrize(("arguments", "says"), [((), "Missing argument"), (("--wrong",), "No such option")])
def test_usage_ends_with_2(arguments: tuple[str, ...], says: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert says in done.output


def test_without_azures_client_it_ends_with_2(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.ai", None)
    schemas._loaders.cache_clear()
    done = run(tree / BROKEN["files"]["endpoint"])
    assert done.exit_code == 2
    assert "pip install 'llama-endpoints[azure]'" in done.output


def test_a_folder_without_files_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "requests.json").write_text("{}", encoding="utf-8")
    (tmp_path / ".hidden.yml").write_text("a: b", encoding="utf-8")
    done = run(tmp_path)
    assert done.exit_code == 2
    assert "contains no YAML file" in done.output


def test_a_file_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere.yml")
    assert done.exit_code == 1
    assert f"{tmp_path}/nowhere.yml:1: cannot be read: No such file or directory" in done.output


@pytest.mark.parametrize("name", ["loop.yml", "n" * 300 + ".yml"])
def test_a_name_that_leads_nowhere_is_a_finding(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop.yml").symlink_to(tmp_path / "loop.yml")
    done = run(tmp_path / name)
    assert done.exit_code == 1
    assert f"{name}:1: cannot be read: " in done.output


def test_a_large_file_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "large.yml").write_bytes(b"# " + b"x" * (1 << 20))
    assert "1,048,576 bytes" in run(tmp_path / "large.yml").output


def test_a_secret_is_never_shown(tree: Path, edited: Any) -> None:
    """Not even by the other rules that find something at its line."""
    text = BROKEN["good"][BROKEN["files"]["online"]]
    token = "hf_" + "a1B2" * 6
    path = edited(
        BROKEN["files"]["online"], text.replace("instance_count: 1", f"instance_count: {token}").encode()
    )
    for arguments in ((path,), ("--json", path)):
        done = run(*arguments)
        assert done.exit_code == 1
        assert "Hugging Face" in done.output
        assert token not in done.output


def test_a_secret_of_several_lines_is_not_shown_either(tree: Path, edited: Any) -> None:
    token = "hf_" + "a1B2" * 6
    text = BROKEN["good"][BROKEN["files"]["endpoint"]]
    path = edited(
        BROKEN["files"]["endpoint"], text.replace("auth_mode: key", f"auth_mode: >-\n  {token}").encode()
    )
    done = run(path)
    assert "must be one of key, aml_token, aad_token, not '***'" in done.output
    assert token not in done.output


# --- files of any shape ---------------------------------------------------------------------------

STRANGE = (None, [], {}, {"a": 1}, [None], ["x", {"b": []}], "", "x", -1, 10**12, True, 1.5, float("nan"), "[x]", "é" * 300, "\0")  # fmt: skip


def put(root: Any, place: Place, value: object) -> Any:
    changed = copy.deepcopy(root)
    inner = changed
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return changed


@pytest.mark.parametrize("name", SPECS)
def test_no_value_breaks_a_rule(name: str, tree: Path) -> None:
    """Every value of a good file, replaced with some of another kind: with each of them somewhere."""
    document, _ = read(tree / name)
    assert document is not None
    kind = kind_of(document.root)
    assert kind is not None
    others = tuple(specs_of(tree / other for other in SPECS if other != name))
    for number, place in enumerate(document.lines):
        for value in (STRANGE[(4 * number + step) % len(STRANGE)] for step in range(4 if place else 0)):
            spec = SpecFile(replace(document, root=put(document.root, place, value)), kind)
            around = SpecTree((spec, *others))
            for one in (spec, *(others if value in (None, {}) else ())):
                for rule in RULES:
                    assert all(finding.shown() for finding in rule(one, around))
