"""Fixtures of the tests of `llama_serving`."""

import tests.support.untimed  # noqa: F401
from tests.support.draws import before_draw  # noqa: F401
