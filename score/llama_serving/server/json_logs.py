"""The log as lines of JSON."""

import logging
import sys
import time
from typing import Any

from llama_serving.contract.json_lines import json_line


class JsonLines(logging.Formatter):
    """A log line as a JSON object: time, level, logger, message, and what a record says of itself."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **getattr(record, "fields", {"message": record.getMessage()}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json_line(line)


def log_as_json() -> None:
    """Everything that is logged in this process, as JSON lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("llama_serving", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
