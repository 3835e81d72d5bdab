"""Continuous batching: sequences join and leave the running batch at every step."""
