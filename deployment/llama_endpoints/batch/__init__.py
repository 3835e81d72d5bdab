"""Batch jobs on this machine: a dry run, and a batch deployment run as Azure runs it."""
