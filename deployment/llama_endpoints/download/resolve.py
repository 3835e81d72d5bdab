"""Names of models and checkpoints -> folders on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

from llama_endpoints.checkpoints.file_patterns import SMALL_FILES
from llama_endpoints.download.azureml_uri import ModelUri
from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from llama_serving.model_files import ModelFiles


def folder_of(name: str, *, weights: bool = True) -> Path:
    """The folder of `name`: a path, one of Azure's names of a model, or `nano` for the embedded model.

    Args:
        name: of a checkpoint.
        weights: whether they are needed, where it is to be downloaded.

    Raises:
        SetupError: there is no such folder, or it can't be downloaded.
    """
    from llama_endpoints.download import azureml_cache  # (which knows this file)

    if ModelUri.is_one(name):
        return _only_checkpoint(azureml_cache.here(name, weights=weights))
    folder = Path(name)
    if name == NANO.name and not any((folder / file).is_file() for file in SMALL_FILES):
        return NANO_FOLDER  # also beside a packaged model of that name
    if not folder.is_dir():
        raise SetupError(f"{folder} is not a folder. Name the folder of a checkpoint, or nano.")
    return folder


def _only_checkpoint(folder: Path) -> Path:
    """The one folder with a config.json at or below: a model in Azure may have more around it."""
    found = sorted(path.parent for path in folder.rglob("config.json"))
    return found[0] if len(found) == 1 and not (folder / "tokenizer.json").is_file() else folder


def model_files(name: str) -> "ModelFiles":
    """The model `name`: a folder that `package` wrote, one of Azure's names of such, or `nano`.

    Raises:
        SetupError: there is no such model, or it can't be downloaded.
    """
    from llama_endpoints.download.azureml_cache import here
    from llama_endpoints.nano import FOLDER
    from llama_serving.catalog import NANO
    from llama_serving.model_files import ModelFiles

    if name == NANO.name and not any(Path(name).rglob("MLmodel")):
        return ModelFiles(FOLDER, NANO)
    return ModelFiles.find(here(name))
