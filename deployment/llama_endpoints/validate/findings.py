"""The findings of `validate`, and the names of all rules."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final


class Rule(StrEnum):
    """All rules. A finding names the rule that raised it."""

    # the file
    FILE = "file"
    YAML = "yaml"
    DUPLICATE_KEY = "duplicate-key"
    KEY = "key"
    SCHEMA = "schema"
    AZURE = "azure"
    UNKNOWN_FIELD = "unknown-field"
    KIND = "kind"
    SHAPE = "shape"
    SECRET = "secret"  # noqa: S105  (a rule's name)
    PASSWORD = "password"  # noqa: S105  (a rule's name)
    NOT_CHECKED = "not-checked"
    # names and references
    NAME = "name"
    GIVEN_LATER = "given-later"
    VERSION = "version"
    UNPINNED = "unpinned"
    REFERENCE = "reference"
    REFERENCE_KIND = "reference-kind"
    ID_CASE = "id-case"
    NOT_FOUND = "not-found"
    MODEL_UNKNOWN = "model-unknown"
    # numbers
    RANGE = "range"
    NUMBER_TYPE = "number-type"
    CHOICE = "choice"
    # what a deployment runs
    CODE = "code"
    SCRIPT = "script"
    SCRIPT_KIND = "script-kind"
    MODEL_MISSING = "model-missing"
    ENVIRONMENT_MISSING = "environment-missing"
    CONDA = "conda"
    IMPORT = "import"
    VARIABLE = "variable"
    VARIABLE_TYPE = "variable-type"
    VARIABLE_NAME = "variable-name"
    ENGINE = "engine"
    # online
    DEADLINE = "deadline"
    QUEUE = "queue"
    LATE = "late"
    THREADS = "threads"
    WORKERS = "workers"
    PRELOAD = "preload"
    DRAIN = "drain"
    PATIENCE = "patience"
    PROBE = "probe"
    UNIT = "unit"
    KEPT_PROMPTS = "kept-prompts"
    SCALE = "scale"
    INSTANCE_TYPE = "instance-type"
    RESOURCES = "resources"
    # machines
    SIZE = "size"
    RETIRED = "retired"
    RETIRING = "retiring"
    OFFER = "offer"
    OFFER_UNKNOWN = "offer-unknown"
    MEMORY = "memory"
    CROWDED = "crowded"
    # batch
    PLACE = "place"
    OUTPUT = "output"
    IGNORED_FAILURES = "ignored-failures"
    SHORT_TIMEOUT = "short-timeout"
    GPUS = "gpus"
    INSTANCES = "instances"
    # endpoints
    AUTH = "auth"
    TRAFFIC = "traffic"
    CREATION = "creation"
    MIRROR = "mirror"
    IDENTITY = "identity"
    # assets
    IMAGE = "image"
    ROOT_USER = "root-user"
    ROUTES = "routes"
    ROUTE_PORT = "route-port"
    PATH = "path"
    MLMODEL = "mlmodel"
    # clusters
    IDLE = "idle"
    PREEMPTION = "preemption"
    # jobs
    COMMAND = "command"
    # Azure Monitor
    CAPACITY = "capacity"
    METRIC = "metric"
    DURATION = "duration"
    TARGET = "target"
    ONE_WAY = "one-way"
    IMPATIENCE = "impatience"
    FLAPPING = "flapping"
    LOCATION = "location"


class Level(StrEnum):
    """What a finding means.

    ERROR: Azure refuses it, or it cannot work once Azure has accepted it. A secret that is certain is an error too, since
    publishing it cannot be undone.
    WARNING: it is legal and works, but is costly or surprising.
    INFORMATION: not checked, since nothing is known about it: other kinds of Azure files, conda and CI files, third-party containers
    and MLflow models. It never changes the exit code.
    """

    ERROR = "error"
    WARNING = "warning"
    INFORMATION = "information"


WARNINGS: Final = frozenset({
    Rule.NOT_FOUND, Rule.MODEL_UNKNOWN, Rule.KEPT_PROMPTS, Rule.IGNORED_FAILURES, Rule.SHORT_TIMEOUT,
    Rule.OFFER_UNKNOWN, Rule.ROOT_USER, Rule.IDLE, Rule.PREEMPTION, Rule.ONE_WAY, Rule.IMPATIENCE, Rule.FLAPPING,
    Rule.LATE, Rule.CROWDED, Rule.DUPLICATE_KEY, Rule.SCHEMA, Rule.PASSWORD, Rule.GIVEN_LATER, Rule.UNPINNED, Rule.NUMBER_TYPE,
    Rule.VARIABLE_TYPE, Rule.ID_CASE, Rule.IMPORT, Rule.PROBE, Rule.RETIRING, Rule.UNIT, Rule.ROUTE_PORT, Rule.DEADLINE, Rule.QUEUE, Rule.DRAIN, Rule.WORKERS, Rule.PLACE, Rule.CREATION,
})  # fmt: skip
"""Rules whose findings Azure accepts, and which work."""
INFORMATION: Final = frozenset({Rule.NOT_CHECKED})
"""Rules that report what was not checked."""
_MARKS: Final = {Level.ERROR: "", Level.WARNING: "warning: ", Level.INFORMATION: "not checked: "}


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One finding in a file.

    Attributes:
        file: the path as given.
        line: the line, from 1.
        field: the field, such as `settings.retry_settings.timeout`; empty for the file itself.
        message: what is wrong, what is allowed, what to do.
    """

    file: Path
    line: int
    field: str
    rule: Rule
    message: str

    @property
    def level(self) -> Level:
        """The level, which depends on the rule alone."""
        if self.rule in INFORMATION:
            return Level.INFORMATION
        return Level.WARNING if self.rule in WARNINGS else Level.ERROR

    def shown(self) -> str:
        """Return the finding as one line of text."""
        field = f"{self.field}: " if self.field else ""
        return " ".join(f"{self.file}:{self.line}: {field}{_MARKS[self.level]}{self.message}".split())

    def to_dict(self) -> Mapping[str, Any]:
        """Return the finding as plain JSON."""
        return {
            "file": str(self.file),
            "line": self.line,
            "field": self.field,
            "rule": self.rule.value,
            "level": self.level.value,
            "message": self.message,
        }
