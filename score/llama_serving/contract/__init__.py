"""The wire formats: one protocol a file, one validator for all. Pure functions."""
