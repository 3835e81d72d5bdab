"""The notebooks of docs/ print what they show, against an Azure on loopback. After a change: `python -m tests.end_to_end.test_notebooks`."""

import io
import json
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("azure.ai.ml", reason="the extra azure is not installed")

from llama_endpoints.azure.sdk import quiet
from tests.support.fake_azure.desk import ROOT, a_desk
from tests.support.fake_azure.management import GROUP, SUBSCRIPTION, WORKSPACE

PAGES = ("online-endpoint.ipynb", "batch-endpoint.ipynb")


def ran(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with what its cells print now, each in the names of those before; without the dots of azure-ai-ml's polls."""
    made, names = deepcopy(notebook), {"__name__": "__main__"}
    cells = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(io.StringIO()):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        text = printed.getvalue().lstrip(".")
        cell["execution_count"] = number
        cell["outputs"] = (
            [{"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}]
            if text
            else []
        )
    return made


def here(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, Any]]:
    """A notebook as it is, and as it is when it was run at a desk in the folder."""
    notebook = json.loads((ROOT / "docs" / page).read_text(encoding="utf-8"))
    with quiet(), a_desk(folder, monkeypatch) as desk:
        config = {"subscription_id": SUBSCRIPTION, "resource_group": GROUP, "workspace_name": WORKSPACE}
        (desk.folder / "config.json").write_text(json.dumps(config))
        after = ran(notebook)
        assert desk.azure.resources.there == {}, "it leaves nothing that costs money"
    return notebook, after


@pytest.mark.parametrize("page", PAGES)
def test_a_notebook_shows_what_is_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = here(page, tmp_path, monkeypatch)
    assert after == before
    assert any(cell.get("outputs") for cell in before["cells"])


if __name__ == "__main__":
    for name in sys.argv[1:] or PAGES:
        with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
            _, shown = here(name, Path(place), patch)
            patch.chdir(ROOT)
        text = json.dumps(shown, indent=1, ensure_ascii=False) + "\n"
        (ROOT / "docs" / name).write_text(text, encoding="utf-8")
