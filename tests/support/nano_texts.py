"""What the tests of nano's training code share: Python of every kind that it tells apart, and nano as its module."""

from collections.abc import Sequence
from typing import Final

import torch
from safetensors.torch import load_file

from llama_endpoints.nano import FOLDER
from llama_endpoints.nano.documents import STEP_ID
from llama_endpoints.nano.model import Nano
from llama_serving.catalog import NANO
from llama_serving.prompts.tokenizer import Tokenizer

SHORT: Final = '''def short():
    """Too short."""
'''
FOUND: Final = '''def found(values):
    """Returns the sum of the values.

    And more of it.
    """
    return sum(values) + len(values)
'''
OTHER: Final = '''def other(first, second):
    """Joins two texts with a comma."""
    return f"{first}, {second}"
'''
BODY: Final = "    values = [value + 1 for value in values]\n" * 60
MODULE: Final = f'''import functools


{SHORT}

{FOUND}

@functools.cache
def decorated(values):
    """Returns the sum of the values, and remembers what it was."""
    return sum(values) + len(values)


def bare(values):
    total = sum(values)
    count = len(values)
    return total / count


class Shelf:
    """A class."""

    def method(self, values):
        """Returns the sum of the values, of a class."""
        return sum(values) + len(values)


if True:
    def indented(values):
        """Returns the sum of the values, under a condition."""
        return sum(values) + len(values)


{OTHER}

def long(values):
    """Returns the sum of the values, at length."""
{BODY}    return sum(values)
'''


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return b"".join(map(tokenizer.piece, ids)).decode()


def tokenizer_of_training() -> Tokenizer:
    """nano's, with the id that ends a turn in the other dialog format."""
    return Tokenizer.from_folder(FOLDER, NANO.special_ids | {STEP_ID})


def trained() -> Nano:
    """The training code's module, with the committed weights."""
    weights = load_file(FOLDER / "model.safetensors")
    model = Nano(torch.float32)
    model.load_state_dict({name.removeprefix("model."): w.float() for name, w in weights.items()})
    return model.eval()
