"""The default workspace: an Azure ML job's own, that of a config.json, or that of `az configure`."""

import json
import os
from collections.abc import Iterator, Mapping
from configparser import ConfigParser, Error
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_serving.errors import SetupError

_JOB: Final = ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME")
_CONFIG: Final = ("subscription_id", "resource_group", "workspace_name")


@dataclass(frozen=True, slots=True)
class Workspace:
    """An Azure ML workspace: subscription, resource group and name."""

    subscription: str
    group: str
    name: str


def default(environment: Mapping[str, str] | None = None, here: Path | None = None) -> Workspace:
    """Return the first workspace found: in a job's variables, in a config.json here or above, in az's defaults.

    Args:
        environment: variables; those of this process by default.
        here: the first folder to look for config.json (or .azureml/config.json) in; the working directory by default.

    Raises:
        SetupError: there is none.
    """
    given = os.environ if environment is None else environment
    for found in (_of_job(given), *_of_configs(here or Path.cwd()), _of_az(given)):
        if found is not None and all((found.subscription, found.group, found.name)):
            return found
    raise SetupError(
        f"No workspace given. Set {', '.join(_JOB)}, or add the workspace's config.json here, or run `az configure --defaults "
        "group=GROUP workspace=WORKSPACE` after `az login`; or prefix the URI with azureml://subscriptions/ID/resourcegroups/GROUP/"
        "workspaces/WORKSPACE/."
    )


def _of_job(given: Mapping[str, str]) -> Workspace:
    return Workspace(*(given.get(name, "") for name in _JOB))


def _of_configs(here: Path) -> Iterator[Workspace | None]:
    """Yield the workspaces of config.json files, like `MLClient.from_config`; a checkpoint's config.json is skipped."""
    for folder in (here, *here.parents):
        for path in (folder / "config.json", folder / ".azureml" / "config.json"):
            said = _json(path)
            yield Workspace(*(str(said.get(name, "")) for name in _CONFIG)) if said else None


def _of_az(given: Mapping[str, str]) -> Workspace | None:
    """Return the workspace of `az configure --defaults`, in the subscription of `az account set`."""
    folder = Path(given.get("AZURE_CONFIG_DIR") or Path.home() / ".azure")
    config = ConfigParser(interpolation=None)
    try:
        config.read(folder / "config", encoding="utf-8")
    except (Error, UnicodeDecodeError):
        return None
    said = config["defaults"] if config.has_section("defaults") else {}
    accounts = _json(folder / "azureProfile.json").get("subscriptions", [])
    chosen = [str(account.get("id", "")) for account in accounts if account.get("isDefault")]
    return Workspace(next(iter(chosen), ""), said.get("group", ""), said.get("workspace", ""))


def _json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file, which may begin with a byte order mark; empty if there is none."""
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
