"""Device code in Triton, one file per fused step."""
