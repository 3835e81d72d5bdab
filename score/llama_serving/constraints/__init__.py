"""Constrained output: a schema, pattern, choice or grammar that the generated text holds to."""
