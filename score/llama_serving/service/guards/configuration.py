"""Reads the file of `LLAMA_GUARDS`. What can't be used stops the start with one sentence."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, cast

import yaml
from jsonschema import Draft202012Validator, ValidationError

from llama_serving.errors import SetupError
from llama_serving.service.guards.guard import Guard, Stage
from llama_serving.service.guards.guards import BOTH, NO_GUARDS, Guards, Installed
from llama_serving.service.guards.held_stream import Windows

TIMEOUT_S: Final = 5.0
MIN_LINES: Final = 20
_TEXT_ALONE: Final = frozenset((Stage.TEXT,))
_STAGES: Final = {"secrets": _TEXT_ALONE, "overlap": _TEXT_ALONE}
"""What a guard checks unless the file says it, where that is not both."""
_DECISIVE: Final = ("deny_file", "index")
"""Keys of a guard that name a file."""


def load(path: str | None) -> Guards:
    """Return the guards of a file; without one there are none.

    Raises:
        SetupError: the file can't be read or is invalid, or a guard can't be set up.
    """
    if path is None:
        return NO_GUARDS
    file = Path(path)
    try:
        return of(_read(file), file.parent)
    except SetupError as error:
        raise SetupError(f"LLAMA_GUARDS={path} can't be used: {error}") from error


def digest(path: str) -> str:
    """Return a SHA-256 over a file of guards and the files that decide with it what is blocked: deny lists and indexes.

    Raises:
        SetupError: the file or one that it names can't be read.
    """
    file, sha = Path(path), hashlib.sha256()
    try:
        given = _read(file)
        _validate(given, _schema(), "")
        named = [
            entry[key] for entry in given["guards"] for key in _DECISIVE if isinstance(entry.get(key), str)
        ]
        for one in (file, *(file.parent / name for name in named)):
            with one.open("rb") as opened:
                sha.update(hashlib.file_digest(opened, "sha256").digest())
    except SetupError as error:
        raise SetupError(f"LLAMA_GUARDS={path} can't be used: {error}") from error
    except OSError as error:
        raise SetupError(
            f"LLAMA_GUARDS={path} can't be used: {error.filename} can't be read ({error.strerror})."
        ) from error
    return sha.hexdigest()


def of(given: Any, folder: Path) -> Guards:
    """Return the guards of a file's content; its relative paths begin in `folder`.

    Raises:
        SetupError: as in `load`.
    """
    _validate(given, _schema(), "")
    for index, entry in enumerate(given["guards"]):
        rule = _schema()["$defs"][entry["type"]]
        _validate(entry, {"$defs": _schema()["$defs"], **rule}, f"guards[{index}]")
    installed = [_installed(entry, folder) for entry in given["guards"]]
    names = [one.name for one in installed]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SetupError(f"two guards have the name {twice}. Give each a `name` of its own.")
    windows = Windows(**{name: given[name] for name in ("window", "overlap", "max_delay_s") if name in given})
    longest = max(
        (len(word.casefold()) for one in given["guards"] for word in _denied(one, folder)), default=-1
    )
    return Guards(installed, replace(windows, overlap=max(windows.overlap, longest + 1)))


def _installed(entry: Mapping[str, Any], folder: Path) -> Installed:
    kind = entry["type"]
    stages = frozenset(map(Stage, entry["stages"])) if "stages" in entry else _STAGES.get(kind, BOTH)
    timeout_s = float(entry.get("timeout_s", TIMEOUT_S))
    name = entry.get("name", kind)
    guard = _MAKERS[kind]({**entry, "name": name, "timeout_s": timeout_s}, folder)
    return Installed(name, guard, stages, entry.get("on_error") == "allow", timeout_s)


def _blocks(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("action", "block") == "block")


def _rules(entry: Mapping[str, Any], folder: Path) -> Guard:
    from llama_serving.service.guards.rules import Rules

    return Rules(
        entry["name"],
        deny=_denied(entry, folder),
        patterns=entry.get("patterns", {}),
        filtered=_blocks(entry),
        timeout_s=entry["timeout_s"],
    )


def _denied(entry: Mapping[str, Any], folder: Path) -> list[str]:
    if entry["type"] != "rules":
        return []
    lines = _text(folder / entry["deny_file"]).splitlines() if "deny_file" in entry else []
    return [word.strip() for word in (*entry.get("deny", ()), *lines) if word.strip()]


def _secrets(entry: Mapping[str, Any], folder: Path) -> Guard:
    from llama_serving.service.guards.secret_detection import SecretDetection

    del folder
    return SecretDetection(
        entry["name"],
        detectors=tuple(entry.get("detectors", ())),
        filtered=_blocks(entry),
        timeout_s=entry["timeout_s"],
    )


def _overlap(entry: Mapping[str, Any], folder: Path) -> Guard:
    from llama_serving.service.guards.overlap.index import OverlapIndex
    from llama_serving.service.guards.overlap.overlap_guard import OverlapGuard

    index = OverlapIndex.open(folder / entry["index"])
    least = int(entry.get("min_lines", MIN_LINES))
    return OverlapGuard(entry["name"], index, min_lines=least, filtered=_blocks(entry))


def _azure(entry: Mapping[str, Any], folder: Path) -> Guard:
    from llama_serving.service.guards.azure_content_safety import AzureContentSafety, Policy

    code = entry.get("protected_code", "off")
    given = {name: entry[name] for name in ("severities",) if name in entry}
    policy = Policy(
        **given,
        blocklists=tuple(entry.get("blocklists", ())),
        protected_code=None if code == "off" else code == "block",
        filtered=_blocks(entry),
    )
    return AzureContentSafety(
        entry["endpoint"].rstrip("/"), _authorization(entry, folder), policy, timeout_s=entry["timeout_s"]
    )


def _authorization(entry: Mapping[str, Any], folder: Path) -> Callable[[], Mapping[str, str]]:
    from llama_serving.service.guards.azure_content_safety import by_key, by_managed_identity

    if "managed_identity" in entry:
        identity = entry["managed_identity"]
        try:
            return by_managed_identity(None if identity == "system" else identity)
        except ImportError as error:
            raise SetupError("managed_identity needs azure-identity. Install it, or use key_env.") from error
    if "key_file" in entry:
        key, place = _text(folder / entry["key_file"]).strip(), f"key_file {entry['key_file']}"
    else:
        key, place = os.environ.get(entry["key_env"], "").strip(), f"the variable {entry['key_env']}"
    if not (key.isascii() and key.isprintable() and key and " " not in key):
        raise SetupError(f"{place} holds no key. Put the resource's key there.")
    return by_key(key)


def _callable(entry: Mapping[str, Any], folder: Path) -> Guard:
    from llama_serving.service.guards.callables import CallableGuard

    del folder
    return CallableGuard(entry["name"], entry["callable"], filtered=_blocks(entry))


_MAKERS: Final[Mapping[str, Callable[[Mapping[str, Any], Path], Guard]]] = {
    "rules": _rules,
    "secrets": _secrets,
    "overlap": _overlap,
    "azure-content-safety": _azure,
    "callable": _callable,
}


def _read(file: Path) -> Any:
    text = _text(file)
    try:
        return yaml.safe_load(text)  # (JSON is YAML)
    except (yaml.YAMLError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        raise SetupError(
            f"it is no YAML{'' if line is None else f' (line {line + 1})'}. Correct it."
        ) from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SetupError(f"{file} can't be read ({why}).") from error


@cache
def _schema() -> Mapping[str, Any]:
    text = files("llama_serving.service.guards").joinpath("schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _validate(value: Any, rule: Mapping[str, Any], at: str) -> None:
    error = next(iter(Draft202012Validator(rule).iter_errors(value)), None)
    if error is not None:
        raise SetupError(_explained(error, at))


def _explained(error: ValidationError, at: str) -> str:
    """Return the sentence of a violation. It quotes no value: one could be a key."""
    path = at + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    place = f"`{path.lstrip('.')}`" if path else "the file"
    keyword, limit, rule = str(error.validator), cast("Any", error.validator_value), cast("Any", error.schema)
    if keyword in ("additionalProperties", "unevaluatedProperties"):
        return _unknown(cast("Any", error.instance), keyword, place)
    if keyword == "required":
        return f"{place} lacks `{next(name for name in limit if name not in cast('Any', error.instance))}`. Add it."
    if keyword == "propertyNames" or (error.parent is None and "propertyNames" in error.schema_path):
        return f"{place} has a name that is not allowed: it must be {rule.get('description', 'letters, digits, _ and -')}."
    return f"{place} must be {rule.get('description') or _described(keyword, limit)}."


def _described(keyword: str, limit: Any) -> str:
    """Return what is allowed where the rule itself does not say it."""
    if keyword == "type":
        return "an object with `guards`" if limit == "object" else f"of the type {limit}"
    return "one of " + ", ".join(map(str, limit)) if keyword == "enum" else "as the page about guards says"


def _unknown(entry: Mapping[str, Any], keyword: str, place: str) -> str:
    known = set(_schema()["properties"])
    if keyword == "unevaluatedProperties":
        definitions = _schema()["$defs"]
        known = {*definitions["any"]["properties"], *definitions[entry["type"]]["properties"]}
    name = next(str(one) for one in entry if one not in known)
    close = get_close_matches(name, known, n=1)
    advice = f"Did you mean `{close[0]}`?" if close else f"Known are {', '.join(sorted(known))}."
    return f"{place} has the unknown key `{name[:64]}`. {advice}"
