"""The tables of parameters, errors and metrics, as docs/http-api.md and docs/operations.md show them."""

import re
from collections.abc import Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, Final, cast

from llama_endpoints.devtools.blocks import table
from llama_serving.catalog import CATALOG, NANO
from llama_serving.contract.parameters import ALIASES, NAMES
from llama_serving.contract.validation import schema
from llama_serving.engine.base import EngineStats
from llama_serving.errors import OPENAI_CODES, ServingError
from llama_serving.sampling_params import DEFAULT_MAX_NEW_TOKENS
from llama_serving.server.lifecycle import Lifecycle, Phase
from llama_serving.server.metrics import Metrics
from llama_serving.service.guards.guards import NO_GUARDS

CODES: Final[Mapping[str, str]] = {
    "competing_fields": "Two fields say the same thing with different values, or parameters stand in two places.",
    "content_filter": "A guard blocks the prompt; the message names what was found.",
    "context_exceeded": "Prompt and completion do not fit the context.",
    "dialog_unsupported": "The model has no dialog format: a base or Python model.",
    "empty_prompt": "A prompt is empty.",
    "guard_unavailable": "A guard could not check the prompt or the text (503).",
    "infilling_unsupported": "The model was not trained to infill.",
    "invalid_csv": "Batch: a row is not valid CSV.",
    "invalid_dialog": "The roles are in an order that the format does not have.",
    "invalid_json": "The body is not JSON, or not an object, or is nested or split too far.",
    "invalid_type": "Spark: the column has another type.",
    "invalid_value": "A value has another type or lies outside its range.",
    "missing_field": "A required field is missing.",
    "model_not_found": "The server has another model (404, with --strict-model).",
    "streaming_unsupported": "This endpoint cannot stream, or the request has several prompts.",
    "too_many_prompts": "More prompts than LLAMA_MAX_PROMPTS, or than a row may have.",
    "unknown_field": "The field is not known; the message names the closest one.",
    "unreadable_file": "Batch: a file cannot be read.",
    "unsupported_constraint": "A schema, pattern or grammar has something that cannot be held exactly.",
    "unsupported_field": "The field is known elsewhere and not supported here.",
    "unsupported_operation": "Ollama's API has the path, and this server does not do that; the message says what to do.",
    "upstream_refused": "The upstream server refused the request.",
}
"""Codes that are more specific than their status. A test holds them against the sources."""

_DEFAULTS: Final[Mapping[str, str]] = {
    "max_new_tokens": f"{DEFAULT_MAX_NEW_TOKENS}, or what the context leaves",
    "do_sample": "true",
    "repetition_penalty": "1",
    "num_return_sequences": "1",
    **dict.fromkeys(("min_new_tokens", "top_k", "min_p", "presence_penalty", "frequency_penalty"), "0"),
    **dict.fromkeys(
        ("return_full_text", "ignore_eos", "details", "receipt", "stream", "continue_final_message"), "false"
    ),
    "editor_stops": "false; true on `/infill`",
}


def parameters() -> dict[str, str]:
    """Return the block `parameters`: a row for each parameter, with its other names, range and default."""
    properties = schema("parameters")["properties"]
    rows = [[f"`{name}`", _aliases(name), _description(properties, name), _default(name)] for name in NAMES]
    return {"parameters": table([["parameter", "other names", "accepted", "default"], *rows])}


def errors() -> dict[str, str]:
    """Return the blocks `statuses` (a row for each class of error) and `codes`."""
    rows = [
        [str(one.status), f"`{one.default_code}`", f"`{one.openai_type}`", _first_line(one)]
        for one in sorted(ServingError.__subclasses__(), key=lambda one: one.status)
    ]
    codes = [[f"`{code}`", meaning] for code, meaning in CODES.items()]
    renamed = [[f"`{ours}`", f"`{theirs}`"] for ours, theirs in OPENAI_CODES.items()]
    return {
        "statuses": table([["status", "code", "OpenAI's type", "meaning"], *rows]),
        "codes": table([["code", "meaning"], *codes]),
        "openai codes": table([["code", "on OpenAI's routes"], *renamed]),
    }


def metrics() -> dict[str, str]:
    """Return the block `metrics`: a row for each metric of `/metrics`."""
    stats = EngineStats(
        **cast("dict[str, Any]", {one.name: "" if one.type is str else 1 for one in fields(EngineStats)})
    )
    service = SimpleNamespace(
        engine=SimpleNamespace(stats=lambda: stats),
        requests=lambda: (0, 0),
        variant=NANO,
        guards=NO_GUARDS,
        collector=None,
    )
    lifecycle = cast("Lifecycle", SimpleNamespace(phase=Phase.READY, loaded=service))
    text = Metrics(lifecycle).text().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    helps = [
        (name, meaning)
        for name, meaning in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE)
        if not name.endswith("_created")
    ]
    rows = [[f"`{name}`", kinds[name], meaning] for name, meaning in sorted(helps)]
    return {"metrics": table([["name", "type", "meaning"], *rows])}


def _aliases(name: str) -> str:
    return ", ".join(f"`{alias}`" for alias, target in ALIASES.items() if target == name)


def _description(properties: Mapping[str, Any], name: str) -> str:
    rule = properties[name]
    while "$ref" in rule:
        rule = properties[rule["$ref"].rsplit("/", 1)[-1]]
    return str(rule["description"])


def _default(name: str) -> str:
    if name in ("temperature", "top_p"):
        code, llama = CATALOG["codellama/CodeLlama-7b-hf"], CATALOG["meta-llama/Llama-2-7b-hf"]
        return f"Code Llama {getattr(code, name)}, Llama-2 {getattr(llama, name)}"
    return _DEFAULTS.get(name, "none")


def _first_line(error: type[ServingError]) -> str:
    return (error.__doc__ or "").partition("\n")[0]
