"""Somebody's desk: a folder with a rendered endpoint and two deployments, and our command, which takes the fake for Azure."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llama_endpoints.cli.main import main
from tests.support.fake_azure.management import GROUP, SUBSCRIPTION, WORKSPACE
from tests.support.fake_azure.world import ACCOUNT, CONTAINER, FakeAzure, fake_azure
from tests.support.paths import ROOT

WHERE = ("--workspace-name", WORKSPACE, "--resource-group", GROUP, "--subscription", SUBSCRIPTION)
ENDPOINT, BLUE, GREEN = "code-llama", "codellama-7b-hf", "green"
RENDERED = (
    f"yaml/models/{BLUE}.yml", f"yaml/online/{BLUE}.yml", "yaml/online/endpoint.yml", "yaml/online/samples",
    f"yaml/batch/{BLUE}.yml", "yaml/batch/endpoint.yml", "yaml/batch/samples", "yaml/batch/compute",
    "environments/gpu", "environments/gpu-batch",
)  # fmt: skip
SCRIPT = "def init(): ...\n\n\ndef run(raw): return []\n"


_UP: dict[tuple[str, ...], Any] = {}
"""What Azure has when deployments were brought up, by their names."""


@dataclass(frozen=True)
class Desk:
    """The folder, and the Azure that its command talks to."""

    folder: Path
    azure: FakeAzure

    def run(self, *words: str) -> Result:
        """Our command, in this process; the workspace is said."""
        return CliRunner().invoke(main, [*words, *WHERE], catch_exceptions=False)

    def edit(self, file: str, old: str, new: str) -> None:
        """A file of the desk's."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def deploy(self, name: str, *more: str) -> Result:
        """Online."""
        return self.run("deploy", "online", f"yaml/online/{name}.yml", *more)

    def up(self, *names: str) -> None:
        """Deployments of the files as they were rendered; the first one has the traffic. They are brought up once and remembered."""
        kept = (self.azure.resources.there, self.azure.resources.keys, self.azure.management.assets.there)
        if names not in _UP:
            self.bring_up(*names)
            _UP[names] = deepcopy(kept)
        for state, remembered in zip(kept, _UP[names], strict=True):
            state.update(deepcopy(remembered))  # type: ignore[arg-type]

    def bring_up(self, *names: str) -> None:
        """Deployments as the files are now."""
        for name in names:
            done = self.deploy(name)
            assert done.exit_code == 0, done.output
        self.azure.resources.changes.clear()

    @property
    def traffic(self) -> dict[str, int]:
        """Of the endpoint, as Azure has it."""
        endpoint = self.azure.resources.of("onlineEndpoints", ENDPOINT)
        assert endpoint is not None
        return dict(endpoint["properties"].get("traffic") or {})


def files(folder: Path) -> None:
    """As `llama-endpoints render` writes them; the code is a short one, since all of it is uploaded each time."""
    for name in RENDERED:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / name, place) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, place)
    (folder / "score").mkdir()
    for script in ("score.py", "batch_driver.py"):
        (folder / "score" / script).write_text(SCRIPT)
    blue = (folder / f"yaml/online/{BLUE}.yml").read_text(encoding="utf-8")
    green = blue.replace(f"name: {BLUE}\n", f"name: {GREEN}\n")
    (folder / f"yaml/online/{GREEN}.yml").write_text(green, encoding="utf-8")


@contextmanager
def a_desk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk in `folder`, whose process takes the fake for Azure until the block is left. The workspace has the model."""
    monkeypatch.setattr("llama_endpoints.endpoints.polling.EVERY_S", 0.01)
    with fake_azure(folder) as azure:
        azure.add_datastore("workspaceblobstore")
        azure.storage.containers[ACCOUNT, CONTAINER] = {}
        azure.register(BLUE, "1", "models/blue")
        files(folder)
        given = azure.environment()
        for name in os.environ.keys() - given.keys():
            monkeypatch.delenv(name)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        yield Desk(folder, azure)
