"""Faults at every write: a command is killed, or its disk fails, at each call that changes a folder, one after the other."""
