"""Trust as figures: long loads, faults on purpose, and the report that is generated from their runs."""
