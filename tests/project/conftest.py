"""How Hypothesis runs here."""

import tests.support.untimed  # noqa: F401
