"""What the tests of `llama_serving` share."""

import tests.support.untimed  # noqa: F401
from tests.support.draws import before_draw  # noqa: F401
