"""Metrics of samples, with intervals. Pure."""
