"""`make bench`: our engines and servers beside everybody else's, in one run on one machine."""
