"""The rules that `validate` holds specifications to."""
