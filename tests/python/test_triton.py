"""The Triton backend in the simulator: accuracy, promises to torch. Witnesses of what is right: test_lstm.py, ….

Where there is a GPU, the same kernels run there in every test that takes a backend.
"""

import contextlib
import math
from unittest import mock

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import reference, triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.overrides import TorchFunctionMode

from fusedmdn import FusedLSTMMDN

from ..conftest import GPU, Compiling, Idle, launching, simulated
from .problems import (
    LSTM_GRADIENTS,
    LSTM_OUTPUTS,
    backward_arguments,
    check,
    double,
    lstm_arguments,
    mdn_arguments,
    poisoned,
    repeats_for,
)
from .test_library import REGISTRATION, op
from .test_lstm_mdn_nll import EVERYTHING, LENGTHS, Network
from .test_mdn_nll import PENS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class TF32(TorchFunctionMode):
    """Matrix products whose operands are cut off to tf32, as the matrix units do where torch's setting allows it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul):
            args = [(v.view(torch.int32) & ~0x1FFF).view(torch.float32) for v in args]
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def tf32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


class OnGPU:
    """The operators of the backend on a GPU, for arguments on the CPU."""

    def __getattr__(self, name):
        def move(value, device):
            if isinstance(value, (tuple, list)):
                return type(value)(move(v, device) for v in value)
            return value.to(device) if isinstance(value, torch.Tensor) else value

        def run(*arguments):
            try:
                return move(getattr(triton, name)(*move(arguments, "cuda")), "cpu")
            except RuntimeError as error:
                if "plan does not fit" in str(error):  # this GPU has too few multiprocessors
                    pytest.skip(str(error))
                raise

        return run


@pytest.fixture(params=["simulated", *GPU])
def kernels(request):
    """The operators of the backend, where they run."""
    if request.param == "cuda":
        yield OnGPU()
        return
    with simulated():
        yield triton


@pytest.fixture(params=["persistent", "stepwise"])
def plan(request, kernels):
    with ops.plan(request.param):
        yield request.param


@pytest.fixture(params=["persistent", "stepwise"])
def simulated_plan(request):
    with simulated(), ops.plan(request.param):
        yield request.param


def room_for(kernels, H):
    """A GPU that is large enough for the persistent plan, where it is simulated."""
    return simulated(processors=max(8, -(-H // 8))) if kernels is triton else contextlib.nullcontext()


def check_lstm(kernels, T, B, H, *options, rounded=contextlib.nullcontext):
    repeats = max(1, repeats_for(T, B, H) // 10)
    check(kernels, LSTM_OUTPUTS, "lstm", lambda: lstm_arguments(T, B, H, *options), repeats, rounded)

    def backward():
        return backward_arguments(lstm_arguments(T, B, H, *options))

    check(kernels, LSTM_GRADIENTS, "lstm_backward", backward, repeats, rounded)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [1, 7, 16, 33, 100, 400])
def test_accuracy_of_lstm(kernels, plan, H, dtype):
    """Odd sizes, ragged, with peepholes and clipping, and with none of these; packed rows."""
    with room_for(kernels, H):
        check_lstm(kernels, 3, 19, H, dtype, True, True, 0.05)
    if H < 100:
        check_lstm(kernels, 2, 5, H, dtype, False, False, None)
        check_lstm(kernels, 3, 4, H, dtype, True, True, None, True)


@pytest.mark.parametrize("H", [33, 130])
def test_accuracy_in_tf32_where_torch_allows_it(kernels, H):
    with room_for(kernels, H), ops.plan("persistent"), tf32():
        check_lstm(kernels, 3, 19, H, torch.float32, True, True, None, rounded=TF32)
        with pytest.raises(AssertionError, match="over the bound"):  # and it is not float32
            check_lstm(kernels, 3, 19, H, torch.float32, True, True, None)


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.sampled_from(DTYPES), st.data())
def test_accuracy_over_shapes(T, B, H, dtype, data):
    peephole, ragged = data.draw(st.booleans()), data.draw(st.booleans())
    clip = data.draw(st.sampled_from([None, 0.02, 1.0]))
    with simulated(seed=T), ops.plan(data.draw(st.sampled_from(["persistent", "stepwise"]))):
        check_lstm(triton, T, B, H, dtype, peephole, ragged, clip)


@pytest.mark.parametrize(("T", "B"), [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_empty_and_smallest(kernels, plan, T, B):
    for packed in (False, True):
        check_lstm(kernels, T, B, 5, torch.float32, True, True, 0.1, packed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy_with_large_and_tiny_values(kernels, plan, dtype):
    """Saturated gates, and values so small that only relative accuracy shows."""
    for scale in (30.0, 1e-3):
        forward = lstm_arguments(3, 5, 12, dtype, True, False, None)
        forward = [v * scale if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in forward]
        check(kernels, LSTM_OUTPUTS, "lstm", lambda given=forward: given)
        check(kernels, LSTM_GRADIENTS, "lstm_backward", lambda given=forward: backward_arguments(given))


def test_nan_and_infinity_pass_through_the_recurrence(kernels, plan):
    xw = torch.zeros(3, 4, 4 * 20)
    xw[0, 0, 5], xw[0, 1, 45], xw[0, 2, 65] = math.nan, math.inf, -math.inf
    arguments = xw, torch.eye(20).repeat(4, 1), torch.zeros(4, 20), torch.zeros(4, 20), None, None, None, True
    for a, b in zip(kernels.lstm(*arguments), reference.lstm(*arguments), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("pen", "P", "width"), PENS)
@pytest.mark.parametrize("M", [1, 2, 3, 16, 20, 33, 128])
def test_accuracy_of_mdn_nll(kernels, pen, P, width, M, dtype):
    T, B = {1: (17, 61), 2: (17, 61), 3: (17, 61), 16: (13, 20), 20: (9, 14), 33: (8, 8), 128: (4, 8)}[M]
    for ragged, means, clip in ((False, "linear", None), (True, "sigmoid", 0.3)):
        arguments = mdn_arguments(T, B, M, P, pen, dtype, ragged, means, clip)
        check(kernels, ["nll"], "mdn_nll", lambda given=arguments: given)
        backward = [torch.randn(T, B), *arguments, True]
        check(kernels, ["raw", "target"], "mdn_nll_backward", lambda given=backward: given)


@pytest.mark.parametrize(("pen", "P", "width"), PENS)
def test_extremes_are_finite_and_equal_the_reference(kernels, pen, P, width):
    """Values to ±1e6, infinities and NaN: finite where the reference is, NaN or infinite where it is."""
    M, values = 2, torch.tensor([0.0, 12.0, -12.0, 15.5, -15.5, 1e-30, 88.0, -104.0, 1e3, -1e3, 1e6, -1e6])
    special = torch.tensor([math.inf, -math.inf, math.nan])
    raw = values[torch.randint(len(values), (600, 1, P + 6 * M))]
    target = values[torch.randint(len(values), (600, 1, width))]
    for lines in (raw[400:], target[400:]):
        lines[torch.arange(200), 0, torch.randint(lines.shape[-1], (200,))] = special[torch.randint(3, (200,))]
    nll = kernels.mdn_nll(raw, target, None, pen, M, "linear", None)
    arguments = torch.ones_like(nll), raw, target, None, pen, M, "linear", None, True
    gradients = kernels.mdn_nll_backward(*arguments)
    expected = reference.mdn_nll(raw, target, None, pen, M, "linear", None)
    assert nll[:400].isfinite().all()
    assert all(g[:400].isfinite().all() for g in gradients)
    assert torch.equal(nll.isfinite(), expected.isfinite())
    torch.testing.assert_close(nll[:400], expected[:400], rtol=1e-5, atol=1e-5)
    for got, want in zip(gradients, reference.mdn_nll_backward(*arguments), strict=True):
        assert torch.equal(got.isfinite(), want.isfinite())


def test_masked_rows_are_not_read(kernels):
    raw, target, lengths = torch.randn(5, 3, 13), torch.rand(5, 3, 3), torch.tensor([5, 0, 2])
    masked = ~reference.alive(5, lengths)
    clean = kernels.mdn_nll(raw, target, lengths, "bernoulli", 2, "linear", None)
    nan = [torch.where(masked, math.nan, v) for v in (raw, target)]
    assert torch.equal(kernels.mdn_nll(*nan, lengths, "bernoulli", 2, "linear", None), clean)
    arguments = *nan, lengths, "bernoulli", 2, "linear", None, True
    grad = torch.where(masked[..., 0], math.nan, torch.ones(5, 3))
    draw, dtarget = kernels.mdn_nll_backward(grad, *arguments)
    assert (draw[masked[..., 0]] == 0).all()
    assert (dtarget[masked[..., 0]] == 0).all()
    assert draw.isfinite().all()


def test_strided_inputs_are_read_in_place_or_copied(simulated_plan):
    forward = lstm_arguments(4, 5, 9, torch.float32, True, True, None)
    expected = triton.lstm(*forward)
    swapped = [v.transpose(0, 1).contiguous().transpose(0, 1) for v in forward[:5]]
    for a, b in zip(triton.lstm(*swapped, *forward[5:]), expected, strict=True):
        assert torch.equal(a, b)
    wide = torch.randn(4, 5, 30)
    rest = [*backward_arguments(forward)[1:]]
    grads = wide[..., 7:16], wide[..., 7:16].contiguous()
    for a, b in zip(*(triton.lstm_backward(g, *rest) for g in grads), strict=True):
        assert torch.equal(a, b)
    raw, target = torch.randn(4, 5, 40), torch.rand(4, 5, 3)
    some = [
        triton.mdn_nll(v, target, None, "bernoulli", 2, "linear", None) for v in (raw[..., 3:16], raw[..., 3:16] + 0)
    ]
    assert torch.equal(*some)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_computed_again_are_those_saved(dtype):
    """And so are the gradients, up to rounding: lstm_layer against lstm on the projection."""
    with simulated():
        for packed in (False, True):
            xw, weight, h0, c0, p, lengths, clip, _ = lstm_arguments(3, 6, 20, dtype, True, True, None, packed)
            h, _, _, gates, cells = triton.lstm(xw, weight, h0, c0, p, lengths, clip, True)
            check(triton, ["gates"], "lstm_gates", lambda: (xw, weight, h0, c0, p, lengths, h, cells))  # noqa: B023
            again = triton.lstm_gates(xw, weight, h0, c0, p, lengths, h, cells)
            torch.testing.assert_close(again, gates, rtol=0, atol=max(torch.finfo(dtype).eps, 1e-5))


def saved_bytes(run):
    """Bytes that autograd keeps of what `run` computes, each storage once."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_per_token(dtype):
    """What the docstrings say: gates 4H e and cells 4H, or cells alone; h is H e either way."""
    B, I, H, e = 8, 16, 32, dtype.itemsize
    weight_ih, bias, weight_hh = (torch.randn(s).to(dtype).requires_grad_() for s in ((4 * H, I), (4 * H,), (4 * H, H)))

    def a_token(run):
        """By the difference that five steps more make; the input is kept by any layer."""
        inputs = torch.randn(4, B, I).to(dtype), torch.randn(9, B, I).to(dtype)
        few, many = (saved_bytes(lambda x=x: run(x)[0]) for x in inputs)
        return (many - few) / (5 * B) - I * e

    with simulated():
        saved = a_token(lambda x: ops.lstm(torch.nn.functional.linear(x, weight_ih, bias), weight_hh))
        again = a_token(lambda x: ops.lstm_layer(x, weight_ih, bias, weight_hh))
    assert saved == 4 * H * e + 4 * H + H * e
    assert again == 4 * H + H * e


@pytest.mark.parametrize("ragged", [False, True])
def test_a_module_that_recomputes_has_the_same_gradients(backend, ragged):
    model = FusedLSTMMDN(3, 12, 2, 2, skip=True, peephole=True, recompute=True, device=backend, dtype=backend.dtype)
    x = torch.rand(5, 3, 3, device=backend, dtype=backend.dtype)
    lengths = torch.tensor([5, 0, 3], device=backend) if ragged else None
    results = []
    for recompute in (True, False):
        model.recompute = recompute
        loss = model.nll(x, lengths)
        results.append([loss, *torch.autograd.grad(loss, model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_the_same_bits_every_time(simulated_plan):
    """Whatever the schedule: no atomic sums."""
    forward = lstm_arguments(4, 37, 20, torch.bfloat16, True, True, 0.1)
    backward = backward_arguments(forward)
    first = *triton.lstm(*forward), *triton.lstm_backward(*backward)
    for seed in (1, 2):
        with simulated(seed=seed, policy="priority"):
            for a, b in zip((*triton.lstm(*forward), *triton.lstm_backward(*backward)), first, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["persistent", "stepwise"])
def test_one_compilation_serves_every_length_and_batch(name, pretended_gpu):
    """Counted over T and B that are 1, multiples of 16, and neither; strides and alignments differ too."""
    with launching(Compiling()) as compiling, ops.plan(name):
        for T, B in ((1, 1), (1, 16), (16, 1), (5, 3), (16, 32), (7, 70)):
            forward = lstm_arguments(T, B, 20, torch.float32, True, True, 0.1)
            triton.lstm(*forward)
            backward = backward_arguments(forward)
            for first in (backward[0], torch.zeros(T, B, 29)[..., 3:23], torch.zeros(1, 1, 20).expand(T, B, 20)):
                triton.lstm_backward(first, *backward[1:])
            loss = mdn_arguments(T, B, 3, 1, "bernoulli", torch.float32, True, "linear")
            triton.mdn_nll(*loss)
            triton.mdn_nll(torch.zeros(T, B, 23)[..., 3:22], *loss[1:])
            triton.mdn_nll_backward(torch.zeros(T, B), *loss, False)
            # slices that begin anywhere, as of a state (L, B, H) or of rows shifted by one
            state = torch.zeros(3, B, 20)[1:, :, :].unbind()
            triton.lstm(*forward[:2], *state, *forward[4:])
            triton.mdn_nll(loss[0], torch.zeros(T + 1, B, 3)[1:], *loss[2:])
    assert [len(kernel.device_caches[pretended_gpu][0]) for kernel in compiling.kernels] == [1, 1, 1, 1]


def test_nothing_looks_at_values_or_waits(simulated_plan):
    """So that a call can be captured in a CUDA graph: no .item(), .cpu(), .tolist(), bool() or synchronize()."""

    def refuse(*_, **__):
        raise AssertionError("a value was looked at")

    forward = lstm_arguments(3, 5, 8, torch.float32, True, True, 0.1)
    backward = backward_arguments(forward)
    loss = mdn_arguments(3, 5, 3, 1, "bernoulli", torch.float32, True, "linear")
    network = Network(dtype=torch.float32, lengths=LENGTHS, **EVERYTHING)
    names = ["item", "cpu", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(launching(Idle()))
        for name in names:
            stack.enter_context(mock.patch.object(torch.Tensor, name, refuse))
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", refuse))
        stack.enter_context(mock.patch.object(torch.cuda.Stream, "synchronize", refuse))
        triton.lstm(*forward)
        triton.lstm_backward(*backward)
        triton.mdn_nll(*loss)
        triton.mdn_nll_backward(torch.zeros(3, 5), *loss, True)
        nll, h_T, c_T, *saved = triton.lstm_mdn_nll(*network.arguments())
        inputs, options = network.arguments()[:6], network.arguments()[6:-1]
        triton.lstm_mdn_nll_backward(nll, h_T, c_T, *inputs, *saved, *options, True, True)
        with pytest.raises(AssertionError, match="looked at"):
            torch.zeros(1).item()


def test_opcheck(simulated_plan):
    xw, weight, h0, c0, p, lengths, _, _ = lstm_arguments(2, 3, 6, torch.float32, True, True, None)
    inputs = [v.requires_grad_() for v in (xw, weight, h0, c0, p)]
    opcheck(op("lstm"), (*inputs, lengths, 1.0, True), test_utils=[*REGISTRATION, "test_aot_dispatch_dynamic"])
    xw, weight, h0, c0, p = (v.detach() for v in inputs)
    h, h_T, c_T, gates, cells = op("lstm")(xw, weight, h0, c0, p, lengths, None, True)
    opcheck(op("lstm_backward"), (h, h_T, c_T, weight, c0, p, lengths, gates, cells, 1.0))
    if simulated_plan == "stepwise":  # what does not depend on the plan
        opcheck(op("lstm_gates"), (xw, weight, h0, c0, p, lengths, h, cells))
        raw, target, *rest = mdn_arguments(2, 3, 2, 1, "bernoulli", torch.float32, True, "linear")
        raw, target = raw.requires_grad_(), target.requires_grad_()
        utils = [*REGISTRATION, "test_aot_dispatch_dynamic"]
        opcheck(op("mdn_nll"), (raw, target, *rest), test_utils=utils)
        arguments = torch.randn(2, 3), raw.detach(), target.detach(), *rest, True
        opcheck(op("mdn_nll_backward"), arguments)


def test_compiled_training_step_is_one_graph(simulated_plan):
    model = FusedLSTMMDN(3, 8, 2, 2, skip=True, peephole=True)
    x = torch.rand(4, 3, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for T in (4, 3):
        expected, _ = model(x[:T], target=x[:T])
        gradients = torch.autograd.grad(expected.sum(), model.parameters())
        nll, _ = compiled(x[:T], target=x[:T])
        torch.testing.assert_close(nll, expected)
        for got, want in zip(torch.autograd.grad(nll.sum(), model.parameters()), gradients, strict=True):
            torch.testing.assert_close(got, want)


def test_autocast(simulated_plan):
    model = FusedLSTMMDN(3, 16, 1, 2)
    x = torch.rand(4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        nll, (h, c) = model(x, target=x)
    assert (nll.dtype, h.dtype, c.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(nll.sum(), model.parameters()))


def on_fake_cuda(model):
    """The module with empty weights on a GPU that is not there; inside a FakeTensorMode."""
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(empty, requires_grad=False))
    return model


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_on_fake_cuda_tensors(dtype):
    """Traced as on a GPU, without one: shapes, dtypes and devices are right. No gradients: torch aborts."""
    model = FusedLSTMMDN(3, 8, 2, 2, dtype=dtype)
    with ops.backend("reference"):
        expected, (h_cpu, c_cpu) = model(torch.rand(5, 4, 3), target=torch.rand(5, 4, 3))
    with FakeTensorMode(), torch.no_grad():
        on_fake_cuda(model)
        x, lengths = torch.empty(5, 4, 3, device="cuda"), torch.empty(4, dtype=torch.int64, device="cuda")
        nll, (h, c) = model(x, target=x)
        mixture, _ = model(x)
        xw = torch.empty(5, 4, 32, dtype=dtype, device="cuda")
        ragged, (_, c_T) = ops.lstm(xw, model.weight_hh_l0, lengths=lengths)
    for got, want in ((nll, expected), (h, h_cpu), (c, c_cpu)):
        assert (got.shape, got.dtype, got.device.type) == (want.shape, want.dtype, "cuda")
    assert mixture.raw.dtype == ragged.dtype == dtype
    assert (ragged.device.type, c_T.dtype) == ("cuda", torch.float32)


def test_export_and_compile_of_fake_cuda_tensors():
    model = FusedLSTMMDN(3, 8, 1, 2)
    with FakeTensorMode(), torch.no_grad():
        on_fake_cuda(model)
        x = torch.empty(5, 4, 3, device="cuda")
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("T", min=2, max=50)},))
        names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert "fusedmdn.lstm.default" in names
        graphs = []

        def keep(graph, inputs):
            graphs.append(graph)
            return graph.forward

        torch.compile(lambda x: model(x, target=x)[0], fullgraph=True, backend=keep)(x)
    assert len(graphs) == 1


def test_without_a_simulator_cpu_tensors_are_refused():
    with ops.backend("triton"), pytest.raises(RuntimeError, match=r"run on CUDA tensors, got \(2, 3, 8\) on cpu"):
        ops.lstm(torch.zeros(2, 3, 8), torch.zeros(8, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 3, 7)}, r"xw: expected shape \(T, B, 4H\), or \(rows, 4H\) packed, got \(2, 3, 7\)"),
        ({0: torch.zeros(2, 3, 8).double()}, "xw: the Triton kernels take float32, bfloat16 and float16"),
        ({1: torch.zeros(8, 3)}, r"weight_hh: expected shape \(8, 2\), got \(8, 3\)"),
        ({1: torch.zeros(8, 2).half()}, "weight_hh: expected torch.float32, got torch.float16"),
        ({2: torch.zeros(4, 2)}, r"h0: expected shape \(3, 2\), got \(4, 2\)"),
        ({3: torch.zeros(3, 2, device="meta")}, r"c0: expected a tensor on cpu, got \(3, 2\) on meta"),
        ({4: torch.zeros(2, 2)}, r"peephole: expected shape \(3, 2\), got \(2, 2\)"),
        ({5: torch.zeros(2).long()}, r"lengths: expected shape \(3,\), got \(2,\)"),
    ],
)
def test_lstm_refuses_by_name(change, message):
    """The operator itself, which takes what torch.ops gives it."""
    arguments = [torch.zeros(2, 3, 8), torch.zeros(8, 2), torch.zeros(3, 2), torch.zeros(3, 2), None, None, None, True]
    for place, value in change.items():
        arguments[place] = value
    with simulated(), pytest.raises(ValueError, match=message):
        triton.lstm(*arguments)


def test_double_is_what_exactness_is_judged_by():
    assert double([torch.zeros(1), None, 3])[0].dtype == torch.float64
    with poisoned():
        assert torch.empty(3).isnan().all()
