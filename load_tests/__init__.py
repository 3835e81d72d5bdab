"""Load tests: the two stock servers started for real, and locust run against them."""
