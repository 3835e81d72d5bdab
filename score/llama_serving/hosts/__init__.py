"""Runs the service inside other servers' processes: Azure ML's online and batch endpoints, and MLflow."""
