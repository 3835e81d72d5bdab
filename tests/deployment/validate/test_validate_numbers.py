"""The limits of numbers that `validate` knows, each at its edges."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_endpoints.validate.document import read
from llama_endpoints.validate.kinds import ONLINE_DEPLOYMENTS, SpecKind, kind_of
from llama_endpoints.validate.rules import kubernetes
from llama_endpoints.validate.rules import limits as ranges
from llama_endpoints.validate.spec_files import SpecFile, SpecTree

DATA: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "broken_specs.yml").read_text(encoding="utf-8"))
TEXTS: dict[str, str] = {file: DATA["good"][name] for file, name in DATA["files"].items()}
ROWS: list[list[Any]] = DATA["ranges"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]}")
def test_a_number_may_be_from_the_least_to_the_most(row: list[Any], tmp_path: Path) -> None:
    file, field, low, high = (*row, 2**31 - 1)[:4]
    path = tmp_path / "spec.yml"
    path.write_text(TEXTS[file], encoding="utf-8")
    document, _ = read(path)
    assert document is not None
    place = tuple(field.split("."))

    def refused(value: object) -> bool:
        root = copy.deepcopy(document.root)
        inner: Any = root
        for step in place[:-1]:
            inner = inner.setdefault(step, {})
        inner[place[-1]] = value
        spec = SpecFile.of(replace(document, root=root))
        assert spec is not None
        return any(one.field == field for one in ranges.rules(spec, SpecTree()))

    assert [refused(value) for value in (low - 1, low, high, high + 1)] == [True, False, False, True]
    assert all(refused(value) for value in (str(low), low + 0.5, True, [low]))


def test_every_number_of_the_table_is_tested() -> None:
    kinds = {
        file: kind_of(yaml.safe_load(text)) for file, text in TEXTS.items() if file in {row[0] for row in ROWS}
    }
    tested = {(kinds[file], field) for file, field, *_ in ROWS}
    for kind, limits in ranges.RANGES.items():
        for one in limits:
            probe = one.place[0] in ranges.PROBES  # (their numbers are the same; each name is tested once)
            names = [(kind, ".".join(map(str, one.place)))]
            if probe:
                names = [
                    (other, f"{name}.{one.place[1]}") for other in ONLINE_DEPLOYMENTS for name in ranges.PROBES
                ]
            elif kind is SpecKind.KUBERNETES_DEPLOYMENT:
                names.append((SpecKind.MANAGED_DEPLOYMENT, names[0][1]))
            assert tested & set(names), names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1), ("500m", 0.5), ("1.5", 1.5), ("2k", 2e3), ("3M", 3e6), ("4G", 4e9), ("5T", 5e12), ("1Ki", 1024),
        ("1Mi", 1024**2), ("1Gi", 1024**3), ("1Ti", 1024**4), ("0", None), ("-1", None), ("1GB", None), ("", None), (1, None),
    ],
)  # fmt: skip
def test_amounts_of_kubernetes(text: object, expected: float | None) -> None:
    assert kubernetes.amount(text) == expected
