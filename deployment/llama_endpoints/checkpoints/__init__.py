"""Inspect checkpoints, merge adapters into them, and package them as MLflow models."""
