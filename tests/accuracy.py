"""The accuracy that every kernel owes: as good as PyTorch at the same dtype, against float64 with the same inputs."""

import torch


def assert_accurate(name, got, reference, exact):
    """max |kernel - ref64| <= 2 max |reference - ref64| + 64 2^-24 max |ref64| + one rounding of the output's dtype."""
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    assert got.dtype == reference.dtype, f"{name}: {got.dtype}, expected {reference.dtype}"
    if not got.numel():
        return
    ulp = torch.finfo(got.dtype).eps / 2
    got, reference, exact = (v.detach().double() for v in (got, reference, exact))
    assert got.isfinite().all(), f"{name}: not finite"
    largest = exact.abs().max()
    bound = 2 * (reference - exact).abs().max() + 64 * 2.0**-24 * largest + ulp * largest
    error = (got - exact).abs().max()
    assert error <= bound, f"{name}: error {error:.3g} over the bound {bound:.3g} (largest value {largest:.3g})"
