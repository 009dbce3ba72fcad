"""docs/gpu.md: costs of the GPU kernels that arithmetic and a compiler can tell; nothing is measured."""
