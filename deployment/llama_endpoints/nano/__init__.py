"""The embedded model: a tiny Code Llama-shaped checkpoint that ships with the project."""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
