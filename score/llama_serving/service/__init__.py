"""Requests in, results out: the part that every host and server shares."""
