"""Resolve names of models and checkpoints to local folders."""

from pathlib import Path
from typing import Final

from llama_endpoints.checkpoints.file_patterns import SMALL_FILES
from llama_endpoints.download.azureml_uri import ModelUri
from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles

GGUF: Final = ".gguf"


def folder_of(name: str, *, weights: bool = True) -> Path:
    """Return the folder of a checkpoint: a path, an azureml: URI, or `nano` for the embedded model.

    Args:
        name: name of the checkpoint.
        weights: whether the weights are needed, if it has to be downloaded.

    Raises:
        SetupError: the folder does not exist, or it cannot be downloaded.
    """
    from llama_endpoints.download import azureml_cache  # this module imports `resolve` too

    if ModelUri.is_one(name):
        return _only_checkpoint(azureml_cache.resolve(name, weights=weights))
    folder = Path(name)
    if name == NANO.name and not any((folder / file).is_file() for file in SMALL_FILES):
        return NANO_FOLDER  # also beside a packaged model of that name
    if not folder.is_dir():
        raise SetupError(f"{folder} is not a folder. Pass the folder of a checkpoint, or nano.")
    return folder


def checkpoint_of(name: str) -> Path:
    """Return a GGUF file if `name` is one or its folder has no other weights; else the folder, as `folder_of`.

    Raises:
        SetupError: there are several GGUF files, or as `folder_of`.
    """
    if Path(name).suffix.lower() == GGUF and not ModelUri.is_one(name) and not Path(name).is_dir():
        if not Path(name).is_file():
            raise SetupError(f"{name} is not a file. Pass an existing GGUF file.")
        return Path(name)
    folder = folder_of(name)
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == GGUF and path.is_file())
    if not found or any(folder.glob("*.safetensors")):
        return folder
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3]) + (", …" if found[3:] else "")
        raise SetupError(f"{folder} has {len(found)} GGUF files ({names}). Pass one of them as --checkpoint.")
    return found[0]


def _only_checkpoint(folder: Path) -> Path:
    """Return the only folder with a config.json at or below; a model in Azure may contain other files."""
    found = sorted(path.parent for path in folder.rglob("config.json"))
    return found[0] if len(found) == 1 and not (folder / "tokenizer.json").is_file() else folder


def model_files(name: str) -> ModelFiles:
    """Return a packaged model: a folder that `package` wrote, an azureml: URI, or `nano`.

    Raises:
        SetupError: the model does not exist, or cannot be downloaded.
    """
    from llama_endpoints.download.azureml_cache import resolve

    if name == NANO.name and not any(Path(name).rglob("MLmodel")):
        return ModelFiles(NANO_FOLDER, NANO)
    return ModelFiles.find(resolve(name))
