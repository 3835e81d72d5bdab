"""Keys with names: the file that lists them, and which one a request has."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import yaml

from llama_serving.errors import SetupError
from llama_serving.server.accounts.quotas import Limits

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY: Final = re.compile(r"[!-~]{1,512}")
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
ANONYMOUS: Final = "anonymous"
"""Who uses a server without keys."""
RESERVED: Final = ("other", ANONYMOUS)
"""Names that metrics and the audit use themselves."""
MOST_KEYS: Final = 1000
"""Every request is compared with all keys."""
MOST_BYTES: Final = 1 << 20
MOST: Final = 10**12
"""The largest limit."""
_LIMITS: Final = tuple(one.name for one in fields(Limits))
_FIELDS: Final = ("name", "key", "sha256", *_LIMITS)


@dataclass(frozen=True, slots=True)
class Key:
    """One key. The key itself is not kept, so nothing can show it.

    Attributes:
        name: shown in logs, metrics and the audit.
        digest: SHA-256 of the key.
    """

    name: str
    digest: bytes = field(repr=False)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys of a server; without any, none is needed."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def of(cls, unnamed: Iterable[str], path: str | None) -> "KeyRing":
        """Return the keys of `LLAMA_API_KEYS`, named `key-1`, `key-2` and so on, and those of the file.

        Raises:
            SetupError: the file cannot be used.
        """
        plain = [Key(f"key-{number}", _digest(key)) for number, key in enumerate(unnamed, 1)]
        return cls((*plain, *(() if path is None else read(Path(path), plain))))

    def find(self, offered: bytes) -> Key | None:
        """Return the key that was offered. All keys are compared completely, in constant time."""
        digest = hashlib.sha256(offered).digest()
        found = [key for key in self.keys if hmac.compare_digest(digest, key.digest)]
        return found[0] if found else None


def read(path: Path, before: Iterable[Key] = ()) -> tuple[Key, ...]:
    """Return the keys of a file: YAML or JSON, a list of objects.

    Args:
        path: of the file.
        before: keys from elsewhere, whose names are taken.

    Raises:
        SetupError: the file cannot be read, or an entry is invalid. The message quotes no key.
    """
    names, digests = {key.name for key in before}, {key.digest for key in before}
    keys = []
    for number, entry in enumerate(_entries(path), 1):
        place = f"{path}, key {number}"
        key = _key(entry, place)
        if key.name in names:
            raise SetupError(f"{place}: the name {key.name} is taken. Give each key a name of its own.")
        if key.digest in digests:
            raise SetupError(f"{place}: this key is there already, under another name. Remove one of them.")
        names.add(key.name)
        digests.add(key.digest)
        keys.append(key)
    return tuple(keys)


def _entries(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise SetupError(f"{path} has more than {MOST_BYTES} bytes. It must list keys alone.")
        found = yaml.load(raw.decode("utf-8"), Loader=_Strict)  # noqa: S506  (a SafeLoader)
    except OSError as error:
        raise SetupError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError):
        raise SetupError(f"{path} can't be used: it is not UTF-8 YAML.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        # (Its message could quote a key.)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise SetupError(f"{path} can't be used: it is not YAML{where}, or a field is there twice.") from None
    if not isinstance(found, list) or not found:
        raise SetupError(f"{path} holds no keys. It must be a list of objects with name and key (or sha256).")
    if len(found) > MOST_KEYS:
        raise SetupError(f"{path} has {len(found)} keys; at most {MOST_KEYS} are possible.")
    return found


class _Strict(yaml.SafeLoader):
    """Refuses a field that is there twice, of which YAML's loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  (the base's)
        """Return the mapping.

        Raises:
            YAMLError: a field is there twice.
        """
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        if any(names.count(name) > 1 for name in names):
            raise yaml.constructor.ConstructorError(None, None, "twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _key(entry: Any, place: str) -> Key:
    if not isinstance(entry, dict):
        raise SetupError(f"{place} must be an object with the fields name and key (or sha256).")
    for name in entry:
        if name not in _FIELDS:
            # (What is not a field may be a key.)
            raise SetupError(f"{place} has an unknown field. The fields are {', '.join(_FIELDS)}.")
    return Key(_name(entry.get("name"), place), _digest_in(entry, place), _limits(entry, place))


def _name(given: Any, place: str) -> str:
    if not isinstance(given, str) or not NAME.fullmatch(given) or given in RESERVED:
        raise SetupError(
            f"{place}: name must be 1 to 64 letters, digits and . _ -, begin with a letter or digit, and not be "
            f"{' or '.join(RESERVED)}."
        )
    return given


def _digest_in(entry: Mapping[str, Any], place: str) -> bytes:
    key, digest = entry.get("key"), entry.get("sha256")
    if (key is None) == (digest is None):
        raise SetupError(f"{place} must have either key or sha256, the SHA-256 of the key.")
    if digest is not None:
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest.lower()):
            raise SetupError(f"{place}: sha256 must be 64 hexadecimal digits (in quotes if all are 0 to 9).")
        return bytes.fromhex(digest)
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise SetupError(
            f"{place}: key must be one word of 1 to 512 ASCII characters, in quotes if it has only digits."
        )
    return _digest(key)


def _limits(entry: Mapping[str, Any], place: str) -> Limits:
    given = {name: entry[name] for name in _LIMITS if entry.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
            raise SetupError(f"{place}: {name} must be an integer from 1 to {MOST}. Leave it out for no limit.")
    return Limits(**given)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
