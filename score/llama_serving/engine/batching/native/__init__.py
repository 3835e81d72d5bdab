"""C++ kernels for several instruction sets, their build and their bindings."""
