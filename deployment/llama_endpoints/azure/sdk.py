"""Azure's client, azure-ai-ml."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Azure's client without its warnings. It is written for marshmallow 3, which warns that 4 is near; and it logs which of its classes are experimental."""
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
