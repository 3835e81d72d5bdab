"""A packaged model on disk: where its files lie and what packaging recorded about them.

OUT/MLmodel …                           MLflow's own files
OUT/artifacts/llama/llama_model.json    the record: variant, dtype, where the checkpoint is
OUT/artifacts/llama/checkpoint/         config.json, tokenizer.json, *.safetensors
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_serving.catalog import ModelVariant
from llama_serving.errors import SetupError

ARTIFACT: Final = "llama"
RECORD: Final = "llama_model.json"
CHECKPOINT: Final = "checkpoint"
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checkpoint and its model variant.

    Attributes:
        checkpoint: the folder with config, tokenizer and weights.
        variant: the catalog row, with the values that the checkpoint's config overrides.
    """

    checkpoint: Path
    variant: ModelVariant

    @classmethod
    def find(cls, root: Path) -> "ModelFiles":
        """Return the only packaged model at or below `root` (`AZUREML_MODEL_DIR` is usually its parent).

        Raises:
            SetupError: there is none, or more than one, or it was packaged by something else.
        """
        if not root.is_dir():
            raise SetupError(f"{root} is not a folder. Name the folder that `llama-endpoints package` wrote.")
        found = sorted(_models_below(root))
        if len(found) != 1:
            inside = ", ".join(sorted(path.name for path in root.iterdir())[:20]) or "nothing"
            what = "is no MLmodel file" if not found else f"are {len(found)} MLmodel files"
            raise SetupError(
                f"There {what} at or below {root}, which holds {inside}. Name a folder with exactly one "
                "model that `llama-endpoints package` wrote."
            )
        return cls.read(found[0] / "artifacts" / ARTIFACT)

    @classmethod
    def deployed(cls) -> "ModelFiles":
        """Return the only packaged model below `AZUREML_MODEL_DIR`, where Azure ML puts it.

        Raises:
            SetupError: the variable is not set, or as in `find`.
        """
        root = os.environ.get("AZUREML_MODEL_DIR")
        if not root:
            raise SetupError("AZUREML_MODEL_DIR is not set. Set it to the folder of the packaged model.")
        return cls.find(Path(root))

    @classmethod
    def read(cls, folder: Path) -> "ModelFiles":
        """Return the model whose record is in `folder`.

        Raises:
            SetupError: there is no record, it can't be read, or its checkpoint is gone.
        """
        path = folder / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise SetupError(f"{path} has format {record['format']}; this version reads {FORMAT}.")
            variant = ModelVariant.from_dict(record["variant"])
            checkpoint = folder / record["checkpoint"]  # an absolute path stays as it is
        except FileNotFoundError:
            raise SetupError(f"{folder} was not written by `llama-endpoints package`: no {RECORD}.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(f"{path} can't be read: {error!r}. Package the model again.") from error
        if not (checkpoint / "config.json").is_file():
            raise SetupError(f"The checkpoint {checkpoint} that {path} names is not there.")
        return cls(checkpoint, variant)

    def record(self, checkpoint: str) -> dict[str, Any]:
        """Return the record that `read` reads; `checkpoint` is relative to the record, or absolute."""
        return {"format": FORMAT, "checkpoint": checkpoint, "variant": self.variant.to_dict()}


def _models_below(root: Path) -> Iterator[Path]:
    """Yield folders with an MLmodel file. Links to folders are followed, each folder once."""
    seen: set[Path] = set()
    for name, below, files in os.walk(root, followlinks=True):
        folder = Path(name)
        if folder.resolve() in seen or "MLmodel" in files:
            below.clear()
        if folder.resolve() not in seen and "MLmodel" in files:
            yield folder
        seen.add(folder.resolve())
