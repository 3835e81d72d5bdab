"""Evaluation of models: tasks, generation, scoring of samples. A folder on disk connects the steps (`folder`)."""
