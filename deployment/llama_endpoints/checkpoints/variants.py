"""Describe a checkpoint outside the catalog: its shape from its config, the rest from options."""

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import CATALOG, NANO, DialogFormat, Fact, InfillOrder, InfillTokens, ModelVariant
from llama_serving.errors import SetupError
from llama_serving.llama_config import LlamaConfig, positions_of


def custom_variant(  # noqa: PLR0913  (one argument an option)
    folder: Path,
    *,
    dialog: str,
    infill: str,
    step_id: int | None = None,
    temperature: float = 0.2,
    top_p: float = 0.9,
    max_context: int | None = None,
) -> ModelVariant:
    """Return the row of a checkpoint.

    Args:
        folder: the checkpoint; its name becomes the model's name.
        dialog: `inst`, `source` or `none`.
        infill: four ids PRE,SUF,MID,EOT, or `none`.
        step_id: the id of `<step>`; the SOURCE format needs it.
        temperature: default temperature.
        top_p: default top_p.
        max_context: longest context; None is the config's positions.

    Raises:
        SetupError: the options contradict each other or the config.
    """
    from llama_endpoints.checkpoints.inspection import (  # imports numpy, which --help must not
        read_config,
        shape_of,
    )

    config = read_config(folder)
    said = LlamaConfig.of(config, folder)
    shape = shape_of(said)
    if (dialog == "source") != (step_id is not None):
        raise SetupError("--dialog source requires --step-id, and no other dialog takes it.")
    if step_id is not None and not 0 <= step_id < shape.vocab:
        raise SetupError(f"--step-id must be an id below {shape.vocab}, not {step_id}.")
    positions = positions_of(config, folder)
    if positions is None:
        raise SetupError(f"{folder}/config.json has no max_position_embeddings.")
    if max_context is not None and max_context < positions:
        raise SetupError(f"--max-context {max_context} is below the {positions} positions of config.json.")
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return ModelVariant(
        name=folder.resolve().name,
        shape=shape,
        source="options of `llama-endpoints package`",
        rope_theta=said.rope_theta,
        trained_positions=Fact(positions, "config.json"),
        max_context=Fact(max_context or positions, "--max-context" if max_context else "config.json"),
        dialog=None if dialog == "none" else DialogFormat(dialog),
        infill=Fact(_tokens(infill, shape.vocab), "--infill"),
        temperature=temperature,
        top_p=top_p,
        bos_id=_one_id(config, "bos_token_id", 1, shape.vocab),
        eos_id=_one_id(config, "eos_token_id", 2, shape.vocab),
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


def _one_id(config: dict[str, object], name: str, default: int, vocab: int) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab:
        raise SetupError(f"config.json has {name} {value}; one id below {vocab} is needed.")
    return value


def variant_of(name: str, otherwise: str = "") -> ModelVariant:
    """Return a row of the catalog.

    Args:
        name: its name.
        otherwise: an alternative to mention in the message.

    Raises:
        SetupError: the catalog has no such row.
    """
    if name not in CATALOG:
        near = get_close_matches(name, CATALOG, n=1)
        sentences = (
            f"{name} is not in the catalog: `llama-endpoints models` lists it.",
            otherwise,
            f"Did you mean {near[0]}?" if near else "",
        )
        raise SetupError(" ".join(filter(None, sentences)))
    return CATALOG[name]


def infilling_in(row: ModelVariant, order: str | None) -> ModelVariant:
    """Return a row with another order of infilling prompts.

    Raises:
        SetupError: the model has no infilling.
    """
    if order is None:
        return row
    if row.infill.value is None:
        raise SetupError(f"{row.name} has no infilling. Remove --infill-order.")
    tokens = replace(row.infill.value, order=InfillOrder(order))
    return replace(row, infill=Fact(tokens, row.infill.source))


def row_for(checkpoint: str, folder: Path, variant: str | None, described: dict[str, Any]) -> ModelVariant:
    """Return the catalog's row, or one made from options. Nothing is derived from the checkpoint's name."""
    given = {name: value for name, value in described.items() if value is not None}
    if variant is not None and given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SetupError(f"--variant describes the model completely, but {options} describes one outside the catalog. "
                         "Use one or the other.")  # fmt: skip
    if variant is not None:
        return variant_of(
            variant, "For a checkpoint outside it, use --dialog and --infill instead of --variant."
        )
    if not given and folder.samefile(NANO_FOLDER):
        return NANO
    if not {"dialog", "infill"} <= given.keys():
        raise SetupError(
            f"Unknown model {checkpoint}. Pass --variant with a name from `llama-endpoints models`, or "
            "--dialog and --infill for a checkpoint outside the catalog."
        )
    return custom_variant(folder, **given)
