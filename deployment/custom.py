"""A row for a checkpoint outside the catalog: its shape from its config, all else from explicit options."""

from pathlib import Path

from deployment.checkpoint import read_config, rope_theta_of, shape_of
from llama_serving.catalog import DialogFormat, Fact, InfillTokens, ModelVariant
from llama_serving.errors import SetupError


def custom_variant(  # noqa: PLR0913  (one argument an option)
    folder: Path,
    *,
    dialog: str,
    infill: str,
    step_id: int | None,
    temperature: float,
    top_p: float,
    max_context: int | None,
) -> ModelVariant:
    """The row.

    Args:
        folder: the checkpoint; its name becomes the model's.
        dialog: `inst`, `source` or `none`.
        infill: four ids PRE,SUF,MID,EOT, or `none`.
        step_id: the id of `<step>`; the SOURCE format needs it.
        temperature: sampled with by default.
        top_p: likewise.
        max_context: how far it may read; None is its config's positions.

    Raises:
        SetupError: the options contradict each other or the config.
    """
    config = read_config(folder)
    shape = shape_of(config, folder)
    if (dialog == "source") != (step_id is not None):
        raise SetupError("--dialog source needs --step-id, and nothing else does.")
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        raise SetupError(f"{folder}/config.json has no max_position_embeddings.")
    if max_context is not None and max_context < positions:
        raise SetupError(f"--max-context {max_context} is below the {positions} positions of config.json.")
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return ModelVariant(
        name=folder.resolve().name,
        shape=shape,
        source="options of `llama-endpoints package`",
        rope_theta=rope_theta_of(config),
        trained_positions=Fact(positions, "config.json"),
        max_context=Fact(max_context or positions, "--max-context" if max_context else "config.json"),
        dialog=None if dialog == "none" else DialogFormat(dialog),
        infill=Fact(_tokens(infill, shape.vocab), "--infill"),
        temperature=temperature,
        top_p=top_p,
        bos_id=_one_id(config, "bos_token_id", 1),
        eos_id=_one_id(config, "eos_token_id", 2),
        step_id=step_id,
        dtype=str(dtype),
    )


def _tokens(text: str, vocab: int) -> InfillTokens | None:
    if text == "none":
        return None
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) < vocab for part in parts):
        raise SetupError(f"--infill must be none or four ids PRE,SUF,MID,EOT below {vocab}, not {text}.")
    prefix, suffix, middle, eot = map(int, parts)
    return InfillTokens(prefix, suffix, middle, eot)


def _one_id(config: dict[str, object], name: str, default: int) -> int:
    value = config.get(name, default)
    if not isinstance(value, int):
        raise SetupError(f"config.json has {name} {value}; one id is needed.")
    return value
