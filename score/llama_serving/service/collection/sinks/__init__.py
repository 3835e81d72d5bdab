"""Destinations of collected requests, one a file."""
