"""Run model-written code apart: bubblewrap's namespaces, limits, a system call filter, and a verdict that it cannot write."""
