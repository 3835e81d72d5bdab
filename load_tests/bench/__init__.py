"""`make bench`: our engines and servers compared with others, in one run on one machine."""
