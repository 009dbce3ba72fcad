"""The scalar functions against float64, near zero too; and the sum over slices."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from fusedmdn.kernels import activations, product

from ...conftest import GPU
from ...simulator import run

N = 1024


@triton.jit
def apply(FUNCTION: tl.constexpr, x, out, N: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + n, FUNCTION(tl.load(x + n)))


@triton.jit
def add_up(parts, rest, out, S: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    s, r, c = tl.arange(0, S)[:, None, None], tl.arange(0, R)[None, :, None], tl.arange(0, C)[None, None, :]
    tile = tl.load(rest + r * C + c)
    total = product.total(tl.load(parts + (s * R + r) * C + c), tile)
    tl.store(out + tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :], total)


@pytest.fixture(params=["cpu", *GPU])
def device(request):
    return request.param


def launch(kernel, grid, **arguments):
    """In the simulator, or on the GPU."""
    if next(v for v in arguments.values() if isinstance(v, torch.Tensor)).is_cuda:
        kernel[grid](**arguments)
    else:
        run(kernel, grid, arguments)


# names, arguments, and how many units in the last place the result may be off
FUNCTIONS = {
    "log": (np.log, np.concatenate([np.geomspace(1.2e-38, 3e38, 3 * N), 1 + np.linspace(-1e-3, 1e-3, N)]), 2),
    "log1p": (np.log1p, np.concatenate([[0, 1], np.geomspace(1e-30, 1, 2 * N - 2)]), 4),
    "exp": (np.exp, np.linspace(-80, 80, 4 * N), 2),
    "tanh": (np.tanh, np.concatenate([np.geomspace(1e-20, 30, N), -np.geomspace(1e-20, 30, N)]), 4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_right_to_a_few_units_in_the_last_place(device, name):
    function, arguments, units = FUNCTIONS[name]
    x = torch.from_numpy(arguments.astype(np.float32)).to(device)
    out = torch.full_like(x, float("nan"))
    launch(apply, (len(x) // N,), FUNCTION=getattr(activations, name), x=x, out=out, N=N)
    expected = function(x.cpu().numpy().astype(np.float64))
    off = np.abs(out.cpu().numpy() - expected) / np.spacing(np.maximum(np.abs(expected), 1e-37).astype(np.float32))
    assert off.max() <= units, f"{off.max()} units at {x[off.argmax()]}"


def test_the_logarithm_of_what_is_no_normal_number(device):
    x = torch.tensor([float("inf"), float("nan")] * (N // 2), device=device)
    out = torch.zeros_like(x)
    launch(apply, (1,), FUNCTION=activations.log, x=x, out=out, N=N)
    assert torch.equal(out.isinf(), x.isinf())
    assert torch.equal(out.isnan(), x.isnan())


@pytest.mark.parametrize(("slices", "rows", "columns"), [(8, 16, 32), (1, 16, 64), (8, 32, 16)])
def test_all_slices_and_the_rest_are_added(device, slices, rows, columns):
    parts, rest = (torch.randint(-99, 99, (s, rows, columns), device=device).float() for s in (slices, 1))
    out = torch.full((rows, columns), float("nan"), device=device)
    launch(add_up, (1,), parts=parts, rest=rest, out=out, S=slices, R=rows, C=columns)
    assert torch.equal(out, parts.sum(0) + rest[0])
