"""Over legal files of every kind `validate` finds no error: Azure's own client is the arbiter of what is legal."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llama_endpoints.azure import schemas
from llama_endpoints.validate.findings import Level
from llama_endpoints.validate.kinds import WITHOUT_LOADER, SpecKind
from llama_endpoints.validate.report import check
from tests.support.legal_elsewhere import LEGAL_ELSEWHERE
from tests.support.legal_specs import FILES, LEGAL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("legal")
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_there_is_a_legal_file_of_every_kind_that_azure_loads() -> None:
    assert set(LEGAL) == {*(str(kind) for kind in SpecKind if kind not in WITHOUT_LOADER), "batchDeployment"}


FEW = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # (smaller examples of these files say no more, and take minutes)
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def errors(path: Path, root: dict[str, Any]) -> list[str]:
    path.write_text(yaml.safe_dump(root, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return [one.shown() for one in check([path]).findings if one.level is Level.ERROR]


@pytest.mark.parametrize("kind", LEGAL)
@FEW
@given(data=st.data())
def test_a_legal_file_has_no_error(kind: str, folder: Path, data: st.DataObject) -> None:
    path = folder / f"{kind}.yml"
    found = errors(path, data.draw(LEGAL[kind]))
    assert schemas.complaints(kind, path) == [], "Azure's client does not load it"
    assert found == []


@pytest.mark.parametrize("kind", LEGAL_ELSEWHERE)
@FEW
@given(data=st.data())
def test_a_file_that_others_read_has_no_error(kind: str, folder: Path, data: st.DataObject) -> None:
    assert errors(folder / "other.yml", data.draw(LEGAL_ELSEWHERE[kind])) == []
