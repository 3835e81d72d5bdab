"""What a deployment runs with: variables of its image and its own, our settings, the model, gunicorn's flags."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from llama_endpoints.azure.limits import DISK_BYTES_S, VLLM_START_S
from llama_endpoints.planning.sizing import SIXTEEN_BITS, KvDtype, Precision, VllmSizingOptions, weight_bytes
from llama_endpoints.render.spec import WEIGHTS
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.image import Image
from llama_endpoints.validate.kinds import SpecKind
from llama_endpoints.validate.llama_deployments import (
    KEYS_FILE,
    OURS,
    runs_our_code,
    runs_our_server,
    variables_place,
)
from llama_endpoints.validate.references import asset
from llama_endpoints.validate.registry import variant_in_registry
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_serving.catalog import CATALOG, ModelVariant
from llama_serving.errors import SetupError
from llama_serving.settings import Settings

ENGINE: Final = "LLAMA_ENGINE"
VLLM: Final = "LLAMA_VLLM"
TENSOR_PARALLEL: Final = "LLAMA_VLLM_TENSOR_PARALLEL"
SEQUENCES: Final = "LLAMA_MAX_NUM_SEQS"
QUANTIZED: Final = tuple(str(one) for one in Precision if one not in SIXTEEN_BITS)
_SHORT_FLAGS: Final = {"-w": "--workers", "-t": "--timeout"}


@dataclass(frozen=True, slots=True)
class Serving:
    """What a deployment runs with.

    Attributes:
        place: place of its variables in the file.
        variables: the image's variables, overridden by the deployment's.
        image_known: whether the image's variables are known.
        images: the image's variables alone.
        ours: whether our code runs.
        has_server: whether our own server runs, rather than azmlinfsrv or a job's runner.
        waits: whether the first probe is answered only once the model is loaded, as by azmlinfsrv; unknown servers count as not.
        settings: our settings from the variables; the defaults if a value is invalid.
        variant: the model, if known.
        precision: type of its weights, as the model's file says; None leaves it to LLAMA_DTYPE.
    """

    place: Place
    variables: Mapping[str, str]
    image_known: bool
    images: Mapping[str, str]
    ours: bool
    has_server: bool
    waits: bool
    settings: Settings
    variant: ModelVariant | None
    precision: Precision | None

    @classmethod
    def of(cls, spec: SpecFile, tree: SpecTree) -> "Serving":
        """Derive it from a deployment's file and the files around it."""
        place = variables_place(spec)
        environment = asset(spec.at("environment"), SpecKind.ENVIRONMENT, tree)
        image = Image.built_by(environment) if environment else None
        own = {
            name: read for name, value in spec.mapping(*place).items() if (read := _as_text(value)) is not None
        }
        images = image.variables if image else {}
        variables = {**images, **own}
        return cls(
            place,
            variables,
            image is not None,
            images,
            runs_our_code(spec, tree),
            runs_our_server(spec, tree),
            runs_our_code(spec, tree) or spec.at("code_configuration") is not None,
            _settings(variables),
            variant_of(spec, tree),
            precision_of(spec, tree),
        )

    @property
    def inside(self) -> int:
        """The number of requests admitted at a time."""
        return self.settings.max_num_seqs + self.settings.queue

    @property
    def engine(self) -> str:
        """The engine on a GPU. `auto` is vLLM if the image says that it has it, else the pipeline."""
        if self.settings.engine != "auto":
            return self.settings.engine
        return "vllm" if self.settings.vllm else "pipeline"

    @property
    def has_vllm(self) -> bool:
        """Whether our engine starts vLLM."""
        return self.engine == "vllm"

    @property
    def is_elsewhere(self) -> bool:
        """Whether another server, on any machine, generates."""
        return self.settings.engine == "upstream"

    @property
    def gpus(self) -> int:
        """The number of GPUs that vLLM uses."""
        return self.settings.vllm_tensor_parallel * self.settings.vllm_pipeline_parallel

    @property
    def options(self) -> VllmSizingOptions:
        """The vLLM options in the planner's form."""
        settings = self.settings
        return VllmSizingOptions(
            settings.vllm_pipeline_parallel,
            KvDtype(settings.vllm_kv_dtype),
            settings.vllm_prefill_tokens,
            settings.vllm_speculative_tokens,
        )

    @property
    def weight_bytes(self) -> int:
        """The checkpoint's size in bytes; 0 if the model is unknown."""
        if self.variant is None:
            return 0
        return round(weight_bytes(self.variant.shape, self.precision or Precision.BF16))

    @property
    def loading_s(self) -> int:
        """Seconds to read the weights from a slow disk and to start vLLM; 0 if nothing is loaded, or the model is unknown."""
        if self.variant is None or self.is_elsewhere:
            return 0
        reading_s = math.ceil(self.weight_bytes / DISK_BYTES_S)
        return reading_s + (VLLM_START_S if self.has_vllm else 0)

    def flag(self, name: str, default: int) -> int | None:
        """Return an integer flag of GUNICORN_CMD_ARGS; None if the value is not an integer."""
        flags = dict(_flags(self.variables.get("GUNICORN_CMD_ARGS", "")))
        text = flags.get(name, str(default))
        return int(text) if text.isdecimal() else None


def _as_text(value: Any) -> str | None:
    """Return a variable as the container sees it (azure-ai-ml converts numbers); None if it is not a variable."""
    if isinstance(value, bool | int | float):
        return str(value)
    return value if isinstance(value, str) else None


def variant_name(model: Mapping[str, Any]) -> str:
    """Return a model's hub name from its file: its property or tag `variant`, or a word of its description."""
    for field in ("properties", "tags"):
        given = model.get(field)
        if isinstance(given, Mapping) and isinstance(given.get("variant"), str):
            return str(given["variant"])
    words = str(model.get("description") or "").replace(",", " ").split()
    return next((word.rstrip(".;:") for word in words if word.rstrip(".;:") in CATALOG), "")


def precision_of(spec: SpecFile, tree: SpecTree) -> Precision | None:
    """Return the type of a quantized model's weights, as its file says; None if it says nothing known."""
    inline = spec.at("model")
    model = None if isinstance(inline, Mapping) else asset(inline, SpecKind.MODEL, tree)
    root = inline if isinstance(inline, Mapping) else model.document.root if model else {}
    properties = root.get("properties")
    given = properties.get(WEIGHTS) if isinstance(properties, Mapping) else None
    return Precision(given) if given in QUANTIZED else None


def variant_of(spec: SpecFile, tree: SpecTree) -> ModelVariant | None:
    """Return a deployment's catalog row, if the files around it identify the model."""
    inline = spec.at("model")
    if isinstance(inline, Mapping):
        return CATALOG.get(variant_name(inline))
    model = asset(inline, SpecKind.MODEL, tree)
    return CATALOG.get(variant_name(model.document.root)) if model else variant_in_registry(inline)


def _settings(variables: Mapping[str, str]) -> Settings:
    ours = {name: value for name, value in variables.items() if name.startswith(OURS) and name != KEYS_FILE}
    usable = {}
    for name, value in ours.items():
        try:
            Settings.from_environment({name: value})
        except SetupError:
            continue  # `variables` reports it at its line
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
