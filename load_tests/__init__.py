"""Load tests: the real servers, started as processes, under locust."""
