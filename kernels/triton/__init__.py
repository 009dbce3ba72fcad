"""Device code in Triton: one file per fused step, and the pieces that they share."""
