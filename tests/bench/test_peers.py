"""Every peer that this machine can run is right in every dtype, the glue of the others is, and a wrong one is seen."""

import functools
import subprocess
import sys
import types

import pytest
import torch
from fusedmdn.ops import forced
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench import peers
from bench.cell import Cannot
from bench.models import CONFIGS, CellStack, Config, LSTMStack, build, config_of, copied
from bench.peers import compiling, cuda_layers, torch_sampling, torch_training
from bench.peers.ours import OurTrainer
from bench.precision import DTYPES, TORCH, autocast, products
from bench.problems import Answer, Problem, deviation, problem, reference, strokes
from bench.samplers import check_draws, exact_raw, largest, our_error, run_ours
from fusedmdn import ops

HIDDEN = 12
SHAPE = 12, 4  # (T, B)
BITING = 1e-4  # a bound that a mean loss's gradients do exceed, so that the check sees the clipping
CLOSE = {"float32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}  # at these sizes
CLOSE_RAW = {"float32": 1e-5, "bf16": 5e-3, "fp16": 1e-3}
ROUNDED = 1e-5  # what a reduced precision deviates at least
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=CONFIGS)
def name(request):
    return request.param


@functools.cache
def asked(name="B", hidden=HIDDEN, ragged=False, **options):
    """A model, a problem and its exact answer."""
    model, given = build(name, hidden, **options), problem(*SHAPE, ragged=ragged)
    return model, given, reference(model, given)


def check(make, dtype, asked, times=2):
    """Every answer is right, the first and those after it; an optimiser's step lowers the loss, of its own weights."""
    model, given, exact = asked
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with products(dtype):
        trainer = make(model, given, dtype)
        for _ in range(times):
            answer = trainer.answer()
            assert all(gradient.dtype == torch.float32 for gradient in answer.gradients.values())
            assert deviation(answer, exact) < CLOSE[dtype]
            assert dtype == "float32" or deviation(answer, exact) > ROUNDED
        assert list(trainer.phases) == ["forward", "backward", "optimiser"]
        for phase in trainer.phases.values():
            phase()
        assert trainer.answer().loss < answer.loss
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("make", [torch_training.CellTrainer, torch_training.WrittenCellTrainer])
def test_loops_over_cells(make, name, dtype):
    check(make, dtype, asked(name))


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("make", [torch_training.LSTMTrainer, OurTrainer])
def test_whole_sequences(make, name, ragged, dtype):
    check(make, dtype, asked(name, ragged=ragged))


def test_whole_sequences_in_fp16():
    try:
        check(torch_training.LSTMTrainer, "fp16", asked())
    except RuntimeError as trouble:  # oneDNN has it on some CPUs only
        assert "LSTM forward propagation primitive" in str(trouble)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", ["B", "C"])
def test_packed_sequences(name, dtype):
    check(torch_training.PackedTrainer, dtype, asked(name, ragged=True))


@pytest.mark.parametrize("dtype", CLOSE)
def test_torchscript(dtype):
    check(torch_training.ScriptedTrainer, dtype, asked(), times=peers.WARM_UP[peers.TORCH_SCRIPT])


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("make", [torch_training.CellTrainer, torch_training.ScriptedTrainer])
def test_padding_is_masked(make, ragged):
    check(make, "float32", asked("C", ragged=ragged), times=1)


def test_torch_compile():
    check(functools.partial(torch_training.LSTMTrainer, compiled="all"), "bf16", asked("C"))


def test_a_compiled_loss_in_a_trainer():
    for make, dtype in ((torch_training.LSTMTrainer, "bf16"), (torch_training.PackedTrainer, "float32")):
        check(functools.partial(make, compiled="loss"), dtype, asked("C", ragged=True))
    with pytest.raises(ValueError, match="compiled must be one of"):
        torch_training.LSTMTrainer(*asked()[:2], "float32", compiled="head")


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("options", [{"peephole": True}, {"clip_gates": BITING}], ids=str)
def test_written_out_cells(options, dtype):
    check(torch_training.WrittenCellTrainer, dtype, asked(**options))


@pytest.mark.parametrize("options", [{"peephole": True}, {"clip_gates": BITING}], ids=str)
def test_our_variants(options):
    check(OurTrainer, "float32", asked(ragged=True, **options))


def test_the_biting_bound_bites():
    model, given, clipped = asked(clip_gates=BITING)
    assert deviation(clipped, asked()[2]) > 0.1
    assert deviation(torch_training.CellTrainer(model, given, "fp16").answer(), clipped) > 0.1


def test_our_plan_is_forced_in_both_passes():
    model, given, _ = asked()
    trainer, seen = OurTrainer(model, given, "float32", plan="composed"), []
    trainer.model.register_forward_pre_hook(lambda *_: seen.append(forced.plan_of("lstm_mdn_nll")))
    trainer.model.head.weight.register_hook(lambda gradient: seen.append(forced.plan_of("lstm_mdn_nll")))
    trainer.answer()
    assert seen == ["composed", "composed"]
    assert forced.plan_of("lstm_mdn_nll") is None


@pytest.mark.parametrize("wrong", ["weight", "problem", "scale"])
def test_wrong_trainers_are_seen(wrong):
    model, given, exact = asked()
    if wrong == "problem":
        given = Problem(given.x, given.target.flip(0))
    trainer = torch_training.CellTrainer(model, given, "fp16")
    if wrong == "weight":
        with torch.no_grad():
            trainer.net.cells[1].weight_hh.copy_(trainer.net.cells[1].weight_hh.roll(HIDDEN, 0))  # gates out of order
    if wrong == "scale":
        trainer.scale = 1.0
    assert deviation(trainer.answer(), exact) > 5e-2


def test_what_cannot_be_trained():
    model, given, _ = asked()
    makers = peers.training("cpu") | peers.ragged("cpu") | peers.written_out("cpu") | {"ours": OurTrainer}
    for label in set(makers) - {"JAX", "ONNX Runtime"}:
        with pytest.raises(Cannot, match="TF32 is a format of GPUs"):
            makers[label](model, given, "tf32")
        with pytest.raises(ValueError, match="dtype must be one of float32, tf32, bf16, fp16, got 'half'"):
            makers[label](model, given, "half")
    with pytest.raises(Cannot, match="inference only"):
        makers["ONNX Runtime"](model, given, "float32")
    with pytest.raises(Cannot, match=r"C\+\+ kernels compute in float32 and bfloat16"):
        OurTrainer(model, given, "fp16")
    with pytest.raises(Cannot, match="peepholes or clips, not both"):
        torch_training.WrittenCellTrainer(build("B", HIDDEN, peephole=True, clip_gates=1.0), given, "float32")
    with pytest.raises(ValueError, match="lacks or has more of"):
        torch_training.LSTMTrainer(build("B", HIDDEN, peephole=True), given, "float32")


def lstm_steps(z_of, T, start, order):
    """h of every step, by pre-activations z_of(t, h) whose four blocks on axis -2 are in an order of gates."""
    h, c = start
    outputs = []
    for t in range(T):
        gates = dict(zip(order, z_of(t, h).unbind(-2), strict=True))
        c = torch.sigmoid(gates["f"]) * c + torch.sigmoid(gates["i"]) * torch.tanh(gates["g"])
        h = torch.sigmoid(gates["o"]) * torch.tanh(c)
        outputs.append((h, c))
    return [torch.stack(values) for values in zip(*outputs, strict=True)]


def flashrnn(order="ifgo"):
    """FlashRNN's function as its README describes it."""

    def flashrnn(Wx, R, b, states=None, function="lstm", config=None, backend="cuda_fused", dtype="bfloat16"):
        B, T, G, N, D = Wx.shape
        assert (G, R.shape, b.shape) == (4, (4, N, D, D), (4, N, D))
        assert {v.dtype for v in (Wx, R, b)} == {getattr(torch, dtype)}
        assert function == "lstm"
        assert backend in ("cuda_fused", "cuda")
        assert states is None

        def z(t, h):
            return (Wx[:, t] + torch.einsum("gndp,bnp->bgnd", R, h) + b).transpose(1, 2)

        zero = Wx.new_zeros(B, N, D)
        kept = torch.stack(lstm_steps(z, T, (zero, zero), order)).transpose(1, 2)
        return kept, kept[:, :, -1:]

    return flashrnn


class Haste(nn.Module):
    """haste_pytorch.LSTM as its documentation describes it."""

    order = "igfo"

    def __init__(
        self, input_size, hidden_size, batch_first=False, forget_bias=1.0, dropout=0.0, zoneout=0.0,
        return_state_sequence=False,
    ):  # fmt: skip
        super().__init__()
        self.H = hidden_size
        self.kernel = nn.Parameter(torch.empty(input_size, 4 * hidden_size))
        self.recurrent_kernel = nn.Parameter(torch.empty(hidden_size, 4 * hidden_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))

    def from_native_weights(self, weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0):
        def reordered(weight):
            gates = dict(zip("ifgo", weight.chunk(4, -1), strict=True))
            return nn.Parameter(torch.cat([gates[gate] for gate in self.order], -1).contiguous())

        self.kernel, self.recurrent_kernel = reordered(weight_ih_l0.t()), reordered(weight_hh_l0.t())
        self.bias = reordered(bias_ih_l0 + bias_hh_l0)

    def forward(self, input, state=None, lengths=None):
        assert input.dtype == torch.float32
        T, B, _ = input.shape
        zero = input.new_zeros(B, self.H)

        def z(t, h):
            return (input[t] @ self.kernel + h @ self.recurrent_kernel + self.bias).view(B, 4, self.H)

        h, c = lstm_steps(z, T, (zero, zero), self.order)
        return h, (h[-1:], c[-1:])


def lstm_triton(
    x, hidden, cell, w_ih, w_hh, b_ih, b_hh, is_init, compute_dtype=torch.float32, *, recompute=False,
    input_precision=None,
):  # fmt: skip
    """TorchRL's function as its documentation describes it: hidden[b, t] replaces h where is_init[b, t]."""
    B, T, _ = x.shape
    assert {v.dtype for v in (x, hidden, cell, w_ih, w_hh, b_ih, b_hh)} == {torch.float32}
    assert hidden.shape == cell.shape == (B, T, w_hh.shape[1])
    assert (is_init.dtype, is_init.shape) == (torch.bool, (B, T))
    assert input_precision == ("ieee" if compute_dtype == torch.float32 else "tf32")
    assert not is_init.any()
    assert not torch.is_autocast_enabled("cpu")
    rounded = w_hh.to(compute_dtype)

    def z(t, h):
        product = (h.to(compute_dtype) @ rounded.t()).float()
        return (F.linear(x[:, t], w_ih, b_ih) + product + b_hh).view(B, 4, -1)

    h, c = (v.transpose(0, 1) for v in lstm_steps(z, T, (hidden[:, 0], cell[:, 0]), "ifgo"))
    return h, c, h[:, -1], c[:, -1]


@pytest.fixture
def installed(monkeypatch):
    """Makes a stand-in a module that can be imported, and lets it run on the CPU."""

    def install(module, **contents):
        monkeypatch.setattr(cuda_layers, "only_cuda", lambda who, device: None)
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**contents))

    return install


TRITON = "torchrl.modules.tensordict_module._rnn_triton"


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", ["B", "C"])
def test_layers_of_others(installed, name, ragged):
    layers = peers.training("cuda") if not ragged else peers.ragged("cuda")
    padded = " padded" if ragged else ""
    installed("flashrnn", flashrnn=flashrnn())
    for dtype in ("float32", "bf16", "fp16"):
        check(layers[f"FlashRNN, alternating{padded}"], dtype, asked(name, ragged=ragged))
    for dtype in ("bf16", "fp16"):
        check(layers[f"FlashRNN{padded}"], dtype, asked(name, 16, ragged))
    installed("haste_pytorch", LSTM=Haste)
    check(layers[f"haste{padded}"], "float32", asked(name, ragged=ragged))
    installed(TRITON, lstm_triton=lstm_triton)
    for dtype in ("float32", "bf16"):
        check(layers[f"TorchRL Triton{padded}"], dtype, asked(name, ragged=ragged))


def test_another_order_of_gates_is_seen(installed):
    model, given, exact = asked()
    installed("flashrnn", flashrnn=flashrnn("igfo"))
    trainer = cuda_layers.FlashRNNTrainer(model, given, "float32", backend="cuda")
    assert deviation(trainer.answer(), exact) > 0.1
    installed("haste_pytorch", LSTM=type("Wrong", (Haste,), {"order": "ifgo"}))
    assert deviation(cuda_layers.HasteTrainer(model, given, "float32").answer(), exact) > 0.1


@pytest.mark.parametrize(
    ("label", "dtype", "reason"),
    [
        ("FlashRNN", "float32", "FlashRNN's cuda_fused has no float32, only tf32, bf16, fp16"),
        ("FlashRNN", "bf16", "FlashRNN's fused kernels take multiples of 16 hidden units, not 12"),
        ("FlashRNN, alternating", "tf32", "FlashRNN's cuda has no tf32, only float32, bf16, fp16"),
        ("haste", "bf16", "haste's LSTM has no bf16, only float32"),
        ("TorchRL Triton", "fp16", "TorchRL's Triton backend has no fp16, only float32, tf32, bf16"),
    ],
)
def test_limits_of_others(installed, label, dtype, reason):
    installed("flashrnn", flashrnn=flashrnn())
    with pytest.raises(Cannot) as raised:
        peers.training("cuda")[label](*asked()[:2], dtype)
    assert str(raised.value) == reason


def test_others_run_on_cuda_only():
    for label in set(peers.training("cuda")) - set(peers.training("cpu")):
        with pytest.raises(Cannot, match="runs on CUDA only"):
            peers.training("cuda")[label](*asked()[:2], "float32")


@pytest.mark.parametrize(
    ("label", "module"), [("FlashRNN, alternating", "flashrnn"), ("haste", "haste_pytorch"), ("TorchRL Triton", TRITON)]
)
def test_a_missing_package_costs_its_own_row(installed, monkeypatch, label, module):
    installed(module)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ImportError, match=module):
        peers.training("cuda")[label](*asked()[:2], "float32")


def test_optional_packages_are_imported_when_needed():
    listed = "for kind in (peers.training, peers.ragged, peers.sampling, peers.losses): kind('cuda'), kind('cpu')"
    optional = {"jax", "onnx", "onnxruntime", "flashrnn", "haste_pytorch", "torchrl"}
    code = f"import sys\nfrom bench import peers\n{listed}\nprint({optional} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("dtype", CLOSE_RAW)
@pytest.mark.parametrize("peer", ["nn.LSTM loop", "nn.LSTMCell loop", "TorchScript"])
def test_samplers(peer, name, dtype):
    sampled(peers.sampling("cpu")[peer], name, dtype)


def test_a_compiled_step():
    sampled(peers.sampling("cpu")["torch.compile step"], "B", "bf16")


def sampled(make, name, dtype):
    """Its raw outputs and draws are right, its rows are rows."""
    model, x = build(name, HIDDEN), strokes(5, 3)
    sampler = make(model, dtype, 1)
    raw = sampler.raw(x)
    assert raw.dtype == torch.float32
    assert largest(raw, exact_raw(model, x)) < CLOSE_RAW[dtype]
    assert dtype == "float32" or largest(raw, exact_raw(model, x)) > ROUNDED
    check_draws(sampler, model, 4000)
    rows = sampler.sample(3, 5)
    assert rows.shape == (5, 3, 3)
    assert rows.dtype == torch.float32
    assert rows.isfinite().all()
    assert set(rows[..., 2].unique().tolist()) <= {0.0, 1.0}
    assert (rows[1:] != rows[:-1]).any()
    return sampler


class Recorded(TorchDispatchMode):
    """What a captured graph is: the operations and their tensors, without the Python that called them."""

    def __init__(self, run):
        super().__init__()
        self.operations = []
        with self:
            run()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, given))
        return given

    def replay(self):
        for function, args, kwargs, kept in self.operations:
            given = function(*args, **kwargs)
            pairs = zip(*((v,) if isinstance(v, torch.Tensor) else v for v in (kept, given)), strict=True)
            for old, new in pairs:
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.mark.parametrize("dtype", CLOSE_RAW)
def test_a_captured_step(dtype):
    def graphed(model, dtype, threads):
        return torch_sampling.GraphedLoop(model, dtype, threads, capture=lambda run: Recorded(run).replay)

    sampler = sampled(graphed, "B", dtype)
    rows = []
    for other in (sampler, sampler, torch_sampling.cell_loop(build("B", HIDDEN), dtype, 1)):
        torch.manual_seed(0)
        rows.append(other.sample(3, 6))
    assert torch.equal(rows[0], rows[1])  # it starts anew
    assert torch.equal(rows[0], rows[2])  # it feeds rows and state back


def test_samplers_of_a_gpu_refuse_the_cpu():
    model = build("B", HIDDEN)
    with pytest.raises(Cannot, match="a CUDA graph runs on CUDA only"):
        peers.sampling("cuda")["CUDA graph of a step"](model, "float32", 1)
    for label in set(peers.sampling("cpu")) - {"JAX scan", "ONNX Runtime"}:
        with pytest.raises(Cannot, match="TF32 is a format of GPUs"):
            peers.sampling("cpu")[label](model, "tf32", 1)


def test_replays_of_a_compiled_step_are_cloned(monkeypatch):
    where = [torch.zeros(2, 3) for _ in range(4)]
    monkeypatch.setattr(torch_sampling, "compiled", lambda step, **options: step)
    cloned = torch_sampling.reduced_overhead(lambda x, h, c: (where[0], where[1], [where[2]], [where[3]]))
    raw, row, (h,), (c,) = cloned(None, [], [])
    assert not {v.data_ptr() for v in (raw, row, h, c)} & {v.data_ptr() for v in where}


def test_our_sampler(name):
    model = build(name, HIDDEN)
    assert our_error(model, "float32", 3, 20) < 1e-4
    assert our_error(model, "bf16", 3, 20) < 1e-2
    for dtype in ("tf32", "fp16"):
        with pytest.raises(Cannot, match="float32 and bfloat16"):
            run_ours(model, dtype, 3, 20)


def test_our_samplers_plan_is_forced(monkeypatch):
    model, seen = build("B", HIDDEN), []
    monkeypatch.setattr(model, "generate", lambda *_, **options: seen.append((forced.plan_of("generate"), options)))
    run_ours(model, "bf16", 3, 20, plan="rows")
    run_ours(model, "float32", 3, 20)
    assert [plan for plan, _ in seen] == ["rows", None]
    assert [options["dtype"] for _, options in seen] == [torch.bfloat16, torch.float32]


def test_same_weights_every_time_and_in_every_peer(name):
    model, again = build(name, HIDDEN), build(name, HIDDEN)
    others = dict(again.named_parameters()), LSTMStack(model).named(), CellStack(model).named(), copied(model)
    for other in others:
        assert other.keys() == dict(model.named_parameters()).keys()
        assert all(torch.equal(p, other[n]) for n, p in model.named_parameters())


def test_wrong_weights_are_seen():
    model = build("B", HIDDEN)
    sampler = torch_sampling.lstm_loop(model, "float32", 1)
    with torch.no_grad():
        sampler.network.net.head.bias[5] += 0.01
    x = strokes(5, 3)
    assert largest(sampler.raw(x), exact_raw(model, x)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("part", ["dx", "rho", "eos"])
def test_wrong_draws_are_seen(part):
    model = build("C", HIDDEN)

    class Wrong(torch_sampling.Loop):
        def draw(self, raw):
            raw = raw.clone()
            M = model.num_mixtures
            first, count = {"dx": (1 + M, 1), "rho": (1 + 5 * M, M), "eos": (0, 1)}[part]
            raw[:, first : first + count] += 0.5
            return super().draw(raw)

    with pytest.raises(ValueError, match="wrong draws: mean of"):
        check_draws(Wrong(torch_sampling.LSTMStep(model, "float32")), model, 20_000)


M = 20


def graded(mean, raw, target):
    leaf = raw.detach().requires_grad_()
    value = mean(leaf, target)
    value.backward()
    return Answer(value.item(), {"raw": leaf.grad})


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("peer", ["eager", "naive eager"])
def test_losses(peer, dtype):
    lossy(peers.losses("cpu")[peer], dtype)


def test_a_compiled_loss():
    lossy(peers.losses("cpu")["torch.compile"], "bf16")


def lossy(make, dtype):
    """Loss and gradient are right, and of another target they are others."""
    raw = torch.randn(6, 4, 1 + 6 * M, generator=torch.Generator().manual_seed(0)).to(TORCH[dtype])
    target, mean = strokes(6, 4), make(M)
    with ops.backend("reference"):
        exact = graded(lambda *rows: ops.mdn_nll(*rows, num_mixtures=M).mean(), raw.double(), target.double())
    answer = graded(mean, raw, target)
    assert answer.gradients["raw"].dtype == raw.dtype
    assert answer.loss == pytest.approx(exact.loss, rel=1e-5)  # in float32 throughout; the gradient is rounded once
    assert deviation(answer, exact) < {"float32": 1e-4, "bf16": 2**-8, "fp16": 2**-10}[dtype]
    assert deviation(graded(mean, raw, target.flip(0)), exact) > 5e-2


def test_every_shape_is_compiled():
    double = compiling.compiled(lambda x: x + x, fullgraph=True, backend="eager")
    for size in range(2, 14):  # PyTorch's own limit is 8, an error with fullgraph
        assert torch.equal(double(torch.ones(size)), torch.full((size,), 2.0))


def test_precisions():
    assert set(TORCH) == set(DTYPES)
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = [s.fp32_precision for s in settings]
    for dtype in DTYPES:
        with products(dtype):
            assert {s.fp32_precision for s in settings} == {"tf32" if dtype == "tf32" else "ieee"}
            assert torch.backends.cuda.matmul.allow_tf32 == (dtype == "tf32")
            with products("float32"):
                assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.backends.cuda.matmul.allow_tf32 == (dtype == "tf32")
        assert not torch.backends.cuda.matmul.allow_tf32
        assert [s.fp32_precision for s in settings] == before
        with autocast(dtype, CPU):
            assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == TORCH[dtype]
    with pytest.raises(ValueError, match="got 'double'"), products("double"):
        pass


def test_networks_by_name():
    assert config_of("1x128") == Config(1, 128, 20, False)
    assert config_of("B") is CONFIGS["B"]
    assert build("1x16").hidden_size == 16
    assert build("1x16", 8).hidden_size == 8
    for wrong in ("E", "2x64", "1x0", "1x", "1x64x"):
        with pytest.raises(ValueError, match=f"model must be one of A, B, C, D or 1xH, as 1x128, got '{wrong}'"):
            config_of(wrong)


def test_a_ragged_problem():
    T, B = 12, 8
    given = problem(T, B, ragged=True)
    assert T // 3 <= int(given.lengths.min()) < int(given.lengths.max()) <= T
    assert given.rows == int(given.lengths.sum())
    assert not given.x[int(given.lengths[0]) :, 0].any()
    moved = given.to("meta")
    assert (moved.x.device.type, moved.target.device.type, moved.lengths.device.type) == ("meta", "meta", "cpu")


def test_deviations():
    exact = Answer(2.0, {"w": torch.tensor([1.0, -4.0])})
    assert deviation(Answer(2.0, {"w": torch.tensor([1.0, -3.0])}), exact) == 0.25
    assert deviation(Answer(3.0, exact.gradients), exact) == 0.5
    assert deviation(Answer(float("nan"), exact.gradients), exact) == float("inf")
    with pytest.raises(ValueError, match=r"gradients differ in \['v', 'w'\]"):
        deviation(Answer(2.0, {"v": torch.zeros(2)}), exact)


def test_lengths_default_to_all():
    assert Problem(torch.zeros(3, 2, 3), torch.zeros(3, 2, 3)).rows == 6
