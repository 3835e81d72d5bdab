"""What runs apart: standard library only, beside namespaces of its own. Nothing else of the package is there."""
