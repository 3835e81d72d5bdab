"""Tasks: one file each; `registry` makes one from its name."""
