"""Bodies <-> values, pure: one protocol a file, one validator for all of them."""
