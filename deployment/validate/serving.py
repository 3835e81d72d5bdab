"""What a deployment would run with: variables of its image and its own, our settings, the model, gunicorn's flags."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from deployment.limits import DISK_BYTES_S
from deployment.validate.image import Image
from deployment.validate.kinds import Kind
from deployment.validate.lines import Place
from deployment.validate.references import asset
from deployment.validate.scripts import is_ours
from deployment.validate.tree import Spec, Tree
from llama_serving.catalog import CATALOG, ModelVariant
from llama_serving.errors import SetupError
from llama_serving.settings import Settings

OURS: Final = "LLAMA_"
KEYS_FILE: Final = "LLAMA_API_KEYS_FILE"
_SHORT_FLAGS: Final = {"-w": "--workers", "-t": "--timeout"}


@dataclass(frozen=True, slots=True)
class Serving:
    """What a deployment would run with.

    Attributes:
        place: of its variables in the file.
        variables: the image's, under its own.
        image_known: whether those of the image are among them.
        ours: whether it is our code that runs.
        settings: what our code reads out of them; the defaults where they can't be used.
        variant: the model, if it is known.
    """

    place: Place
    variables: Mapping[str, str]
    image_known: bool
    ours: bool
    settings: Settings
    variant: ModelVariant | None

    @classmethod
    def of(cls, spec: Spec, tree: Tree) -> "Serving":
        """From a deployment's file and those around it."""
        place = variables_place(spec)
        environment = asset(spec.at("environment"), Kind.ENVIRONMENT, tree)
        image = Image.built_by(environment) if environment else None
        own = {name: value for name, value in spec.mapping(*place).items() if isinstance(value, str)}
        variables = {**(image.variables if image else {}), **own}
        ours = is_ours(spec) or any(name.startswith(OURS) for name in own)
        return cls(place, variables, image is not None, ours, _settings(variables), variant_of(spec, tree))

    @property
    def inside(self) -> int:
        """Requests that are taken in at a time."""
        return self.settings.max_num_seqs + self.settings.queue

    @property
    def reading_s(self) -> int:
        """Seconds that reading the weights from a slow disk takes; 0 where they are not known."""
        return math.ceil(self.variant.shape.weight_bytes() / DISK_BYTES_S) if self.variant else 0

    def flag(self, name: str, default: int) -> int | None:
        """An integer of GUNICORN_CMD_ARGS; None where it is none."""
        flags = dict(_flags(self.variables.get("GUNICORN_CMD_ARGS", "")))
        text = flags.get(name, str(default))
        return int(text) if text.isdecimal() else None


def variables_place(spec: Spec) -> Place:
    """Where a deployment's variables belong."""
    batch = spec.kind is Kind.BATCH_DEPLOYMENT
    return ("settings", "environment_variables") if batch else ("environment_variables",)


def variant_name(model: Mapping[str, Any]) -> str:
    """The hub's name of a model, as its file gives it: its property or tag `variant`, or a word of its description."""
    for field in ("properties", "tags"):
        given = model.get(field)
        if isinstance(given, Mapping) and isinstance(given.get("variant"), str):
            return str(given["variant"])
    words = str(model.get("description") or "").replace(",", " ").split()
    return next((word.rstrip(".;:") for word in words if word.rstrip(".;:") in CATALOG), "")


def variant_of(spec: Spec, tree: Tree) -> ModelVariant | None:
    """The model of a deployment, if the files around say which it is."""
    inline = spec.at("model")
    if isinstance(inline, Mapping):
        return CATALOG.get(variant_name(inline))
    model = asset(inline, Kind.MODEL, tree)
    return CATALOG.get(variant_name(model.document.root)) if model else None


def _settings(variables: Mapping[str, str]) -> Settings:
    ours = {name: value for name, value in variables.items() if name.startswith(OURS) and name != KEYS_FILE}
    usable = {}
    for name, value in ours.items():
        try:
            Settings.from_environment({name: value})
        except SetupError:
            continue  # (said by `variables`, at its line)
        usable[name] = value
    return Settings.from_environment(usable)


def _flags(text: str) -> Iterator[tuple[str, str]]:
    try:
        words = shlex.split(text)
    except ValueError:
        return
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name.startswith("-"):
            yield _SHORT_FLAGS.get(name, name), value if equals else following
