"""A function of the operator's as a guard."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from llama_serving.contract.content_filter import Finding
from llama_serving.errors import SetupError
from llama_serving.service.guards.guard import Passage

REACH: Final = 1000
"""Characters in front of the unchecked part that the function sees, too."""


class CallableGuard:
    """Calls `function(stage, text)`: None or False passes, True blocks, and a text blocks with that as the reason.

    Args:
        name: of the guard; its findings have it.
        place: `package.module:function`.
        filtered: whether what it finds blocks.

    Raises:
        SetupError: there is no such function.
    """

    def __init__(self, name: str, place: str, *, filtered: bool = True) -> None:
        self._name, self._filtered = name, filtered
        self._function = _imported(name, place)

    def check(self, passage: Passage) -> list[Finding]:
        """See `Guard.check`.

        Raises:
            TypeError: the function returned something else.
        """
        said = self._function(passage.stage.value, passage.recent(REACH))
        if said is None or said is False:
            return []
        if said is True:
            return [Finding(self._name, self._filtered)]
        if isinstance(said, str) and said:
            return [Finding(self._name, self._filtered, {"reason": said})]
        raise TypeError


def _imported(name: str, place: str) -> Callable[[str, str], Any]:
    module, _, attribute = place.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except Exception as error:  # a module may raise anything while it is imported
        raise SetupError(
            f"The guard {name} can't import {place} ({type(error).__name__}: {error}). Correct the name, or PYTHONPATH."
        ) from error
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise SetupError(f"The guard {name} needs a plain function, and {place} is none. Name another one.")
    return function  # type: ignore[no-any-return]
