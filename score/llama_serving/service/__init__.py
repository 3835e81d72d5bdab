"""Requests in, answers out: what every endpoint has in common."""
