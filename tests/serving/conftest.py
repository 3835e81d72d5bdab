"""What the tests of `llama_serving` share."""

from tests.support.draws import before_draw  # noqa: F401
