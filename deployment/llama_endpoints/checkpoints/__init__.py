"""Checkpoint folders: what is in them, adapters merged into them, and the MLflow models that are packaged from them."""
