"""The accuracy that every kernel owes (`fusedmdn.ops.accuracy`), asserted."""

from fusedmdn.ops import accuracy


def assert_accurate(name, got, reference, exact):
    """The rule holds for an output; shapes and dtypes are as they should be, and all is finite."""
    try:
        found = accuracy.deviation(got, reference, exact)
    except ValueError as error:
        raise AssertionError(f"{name}: {error}") from error
    error, bound, largest = found
    assert not found.excessive, f"{name}: error {error:.3g} over the bound {bound:.3g} (largest value {largest:.3g})"
