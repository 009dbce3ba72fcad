"""What only a GPU can tell: all tests on it, promises of the kernels, and times beside cuDNN and eager losses."""
