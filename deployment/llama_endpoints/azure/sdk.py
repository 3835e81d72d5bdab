"""Helpers for azure-ai-ml."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence azure-ai-ml's warnings: marshmallow 3 warns about version 4, and experimental classes are logged."""
    logs = [logging.getLogger(name) for name in ("azure", "azure.ai.ml")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
