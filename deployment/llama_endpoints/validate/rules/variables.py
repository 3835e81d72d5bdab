"""Environment variables of deployments: strings, and ours with names and values that our code reads."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, Kind
from llama_endpoints.validate.ours import KEYS_FILE, KNOWN, OURS, is_ours, variables_place
from llama_endpoints.validate.places import is_flat
from llama_endpoints.validate.spec_files import Spec, Tree
from llama_endpoints.validate.values import article, shown
from llama_serving.errors import SetupError
from llama_serving.settings import Settings


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of deployments."""
    if spec.kind not in DEPLOYMENTS:
        return
    if spec.kind is Kind.BATCH_DEPLOYMENT and not is_flat(spec):
        for name in ("environment_variables", "error_threshold"):
            if spec.at(name) is not None:
                yield spec.find(
                    Rule.PLACE, (name,),
                    "stands beside settings, from where Azure's client does not send it. Move it into "
                    "settings.",
                )  # fmt: skip
    place, ours = variables_place(spec), is_ours(spec, tree)
    for name, value in spec.mapping(*place).items():
        yield from _variable(spec, (*place, name), value)
        if ours and name.startswith(OURS) and isinstance(value, str):
            yield from _ours(spec, (*place, name), name, value)


def _variable(spec: Spec, place: Place, value: Any) -> Iterator[Finding]:
    if value is None:
        yield spec.find(
            Rule.VARIABLE_TYPE, place, 'has no value. Write one, "" for an empty one, or leave it out.'
        )
    elif isinstance(value, dict | list):
        yield spec.find(
            Rule.SHAPE, place, f"must be a string, not {shown(value)}: a container has no other variables."
        )
    elif not isinstance(value, str):
        yield spec.find(
            Rule.VARIABLE_TYPE, place,
            f"should be a string; to YAML it is {shown(value)}, {article(value)}. Put it into quotes, as it is "
            "to be read.",
        )  # fmt: skip


def _ours(spec: Spec, place: Place, name: str, value: str) -> Iterator[Finding]:
    if name not in KNOWN:
        try:
            Settings.from_environment({name: value})
            said = "is not a setting."
        except SetupError as error:
            said = f"is not a setting: {error}"
        close = get_close_matches(name, KNOWN, n=1, cutoff=0.5)
        nearest = f" The closest one is {close[0]}." if close else ""
        yield spec.find(Rule.VARIABLE_NAME, place, f"{said}{nearest} All: {', '.join(sorted(KNOWN))}.")
        return
    try:
        if name != KEYS_FILE:  # (it would be opened here, on another machine)
            Settings.from_environment({name: value})
    except SetupError as error:
        yield spec.find(Rule.VARIABLE, place, f"stops the start: {error}")
