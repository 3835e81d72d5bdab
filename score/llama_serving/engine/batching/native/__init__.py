"""C++ kernels for CPUs with AMX and bf16 vectors, their build and their bindings."""
