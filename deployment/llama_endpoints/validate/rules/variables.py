"""Environment variables of deployments: they are strings, and ours have names and values that our code accepts."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, SpecKind
from llama_endpoints.validate.llama_deployments import KEYS_FILE, KNOWN, OURS, runs_our_code, variables_place
from llama_endpoints.validate.places import is_flat
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import article, shown
from llama_serving.errors import SetupError
from llama_serving.settings import Settings


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of deployments."""
    if spec.kind not in DEPLOYMENTS:
        return
    if spec.kind is SpecKind.BATCH_DEPLOYMENT and not is_flat(spec):
        for name in ("environment_variables", "error_threshold"):
            if spec.at(name) is not None:
                yield spec.find(
                    Rule.PLACE, (name,),
                    "is beside settings, where azure-ai-ml ignores it. Move it into "
                    "settings.",
                )  # fmt: skip
    place, ours = variables_place(spec), runs_our_code(spec, tree)
    for name, value in spec.mapping(*place).items():
        yield from _variable(spec, (*place, name), value)
        if ours and name.startswith(OURS) and isinstance(value, str):
            yield from _ours(spec, (*place, name), name, value)


def _variable(spec: SpecFile, place: Place, value: Any) -> Iterator[Finding]:
    if value is None:
        yield spec.find(Rule.VARIABLE_TYPE, place, 'has no value. Set one ("" if empty), or remove it.')
    elif isinstance(value, dict | list):
        yield spec.find(
            Rule.SHAPE, place, f"must be a string, not {shown(value)}: environment variables are strings."
        )
    elif not isinstance(value, str):
        yield spec.find(
            Rule.VARIABLE_TYPE, place,
            f"should be a string; in YAML it is {shown(value)}, {article(value)}. Quote it with the value you mean.",
        )  # fmt: skip


def _ours(spec: SpecFile, place: Place, name: str, value: str) -> Iterator[Finding]:
    if name not in KNOWN:
        try:
            Settings.from_environment({name: value})
            said = "is not a setting."
        except SetupError as error:
            said = f"is not a setting: {error}"
        close = get_close_matches(name, KNOWN, n=1, cutoff=0.5)
        nearest = f" Did you mean {close[0]}?" if close else ""
        yield spec.find(Rule.VARIABLE_NAME, place, f"{said}{nearest} All: {', '.join(sorted(KNOWN))}.")
        return
    try:
        if name != KEYS_FILE:  # it would be opened here, on another machine
            Settings.from_environment({name: value})
    except SetupError as error:
        yield spec.find(Rule.VARIABLE, place, f"prevents the start: {error}")
