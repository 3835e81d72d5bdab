"""What a deployment would run with: variables of its image and its own, our settings, the model, gunicorn's flags."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from deployment.limits import DISK_BYTES_S, VLLM_START_S
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
ENGINE: Final = "LLAMA_ENGINE"
UPSTREAM: Final = "upstream"
UPSTREAM_URL: Final = "LLAMA_UPSTREAM_URL"
UPSTREAM_GPUS: Final = "LLAMA_UPSTREAM_GPUS"
_SHORT_FLAGS: Final = {"-w": "--workers", "-t": "--timeout"}


@dataclass(frozen=True, slots=True)
class Serving:
    """What a deployment would run with.

    Attributes:
        place: of its variables in the file.
        variables: the image's, under its own.
        image_known: whether those of the image are among them.
        starts_vllm: whether it is known that the image starts vLLM beside the scoring script: an upstream engine of its own.
        ours: whether it is our code that runs.
        settings: what our code reads out of them; the defaults where they can't be used.
        variant: the model, if it is known.
    """

    place: Place
    variables: Mapping[str, str]
    image_known: bool
    starts_vllm: bool
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
        images = image.variables if image else {}
        starts_vllm = images.get(ENGINE) == UPSTREAM and UPSTREAM_URL not in images
        variables = {**images, **own}
        ours = is_ours(spec) or any(name.startswith(OURS) for name in own)
        settings, variant = _settings(variables), variant_of(spec, tree)
        return cls(place, variables, image is not None, starts_vllm, ours, settings, variant)

    @property
    def inside(self) -> int:
        """Requests that are taken in at a time."""
        return self.settings.max_num_seqs + self.settings.queue

    @property
    def has_vllm(self) -> bool:
        """Whether another server of the same machine computes."""
        return self.settings.engine == UPSTREAM and not self.is_elsewhere

    @property
    def is_elsewhere(self) -> bool:
        """Whether the model is on another machine, whose server is asked."""
        return self.settings.engine == UPSTREAM and self.settings.upstream_url is not None

    @property
    def gpus(self) -> int | None:
        """Of the machine's, that the model may be spread over; None is all."""
        given = self.variables.get(UPSTREAM_GPUS, "").strip()
        return int(given) if self.has_vllm and is_count(given) else None

    @property
    def loading_s(self) -> int:
        """Seconds until the weights are read from a slow disk, and vLLM is up; 0 where nothing is loaded, or it is not known what."""
        if self.variant is None or self.is_elsewhere:
            return 0
        reading_s = math.ceil(self.variant.shape.weight_bytes() / DISK_BYTES_S)
        return reading_s + (VLLM_START_S if self.has_vllm else 0)

    def flag(self, name: str, default: int) -> int | None:
        """An integer of GUNICORN_CMD_ARGS; None where it is none."""
        flags = dict(_flags(self.variables.get("GUNICORN_CMD_ARGS", "")))
        text = flags.get(name, str(default))
        return int(text) if text.isdecimal() else None


def is_count(text: str) -> bool:
    """Whether it is an integer above 0, of no more digits than anything has."""
    return text.isascii() and text.isdecimal() and len(text) < 9 and int(text) > 0


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
