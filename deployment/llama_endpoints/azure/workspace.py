"""The workspace that is meant where a name does not say: an Azure ML job's own, that of a config.json, that of `az configure`."""

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
    """A workspace of Azure ML: its subscription, its resource group, its name."""

    subscription: str
    group: str
    name: str


def default(environment: Mapping[str, str] | None = None, here: Path | None = None) -> Workspace:
    """The first that is said: by the variables of a job, by a config.json here or above, by az's own defaults.

    Args:
        environment: of this process by default.
        here: where config.json (or .azureml/config.json) is looked for, and above; the working directory by default.

    Raises:
        SetupError: none is said.
    """
    given = os.environ if environment is None else environment
    for found in (_of_job(given), *_of_configs(here or Path.cwd()), _of_az(given)):
        if found is not None and all((found.subscription, found.group, found.name)):
            return found
    raise SetupError(
        f"Which workspace? Set {', '.join(_JOB)}, or put the workspace's config.json here, or run `az configure --defaults "
        "group=GROUP workspace=WORKSPACE` after `az login`; or write azureml://subscriptions/ID/resourcegroups/GROUP/"
        "workspaces/WORKSPACE/ in front."
    )


def _of_job(given: Mapping[str, str]) -> Workspace:
    return Workspace(*(given.get(name, "") for name in _JOB))


def _of_configs(here: Path) -> Iterator[Workspace | None]:
    """As `MLClient.from_config` looks; a checkpoint's config.json is none of them."""
    for folder in (here, *here.parents):
        for path in (folder / "config.json", folder / ".azureml" / "config.json"):
            said = _json(path)
            yield Workspace(*(str(said.get(name, "")) for name in _CONFIG)) if said else None


def _of_az(given: Mapping[str, str]) -> Workspace | None:
    """What `az configure --defaults` wrote, in the subscription that `az account set` chose."""
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
    """An object in a file, which Azure's tools may begin with a byte order mark; nothing where there is none."""
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
