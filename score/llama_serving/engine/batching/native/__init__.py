"""Kernels in C++ for CPUs with tiles and bf16 vectors, what builds them and what calls them."""
