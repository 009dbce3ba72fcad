"""`FusedLSTMMDN`: the drop-in for nn.LSTM + nn.Linear + a hand-written mixture loss and sampling loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from . import ops
from .mixture import StrokeMixture
from .ops import checks
from .ops.products import side_by_side
from .packing import Packing
from .stroke_batch import StrokeBatch
from .strokes import Scale

State = tuple[Tensor, ...]


class FusedLSTMMDN(nn.Module):
    """LSTM stack with a mixture density head (Graves 2013, equations 1-26), for streams of pen rows.

    Parameters are named as in nn.LSTM (`weight_ih_l0`, …), so that its state_dict loads, with `peephole_l{n}` (3, H;
    rows i, f, o), `head.weight` and `head.bias` added. Everything is in the model's units; `scale` is applied by
    `Strokes` and `StrokeBatch` alone.

    Args:
        input_size: features of a step; 3 (bernoulli) or 5 (categorical) wherever rows are fed back.
        hidden_size: H, units of every layer.
        num_layers: L.
        num_mixtures: M, bivariate normals of the head.
        pen: "bernoulli", rows (dx, dy, eos); or "categorical", rows (dx, dy, draw, lift, end), which can end.
        skip: the input feeds every layer, and every layer feeds the head.
        peephole: diagonal weights from the cell state to i, f and o.
        means: "linear", or "sigmoid" for means mapped into (0, 1).
        batch_first: (B, T, ·) in and out, as in nn.LSTM; states stay (L, B, H).
        dropout: probability of zeroing an input of every layer but the first that comes from the layer below.
        clip_gates: bound of the pre-activations' gradient at every step inside backpropagation (Graves: 10). Of the
            loss that is backpropagated: a GradScaler's factor counts, and what it makes infinite is clipped unseen.
        clip_output: bound of the gradient of the head's raw output (Graves: 100), likewise.
        recompute: train in less memory: backward computes the gates of every layer again instead of keeping them.
        device: as in nn.LSTM.
        dtype: as in nn.LSTM.

    Raises:
        ValueError: a size, probability or option out of range.
    """

    def __init__(
        self,
        input_size: int = 3,
        hidden_size: int = 400,
        num_layers: int = 1,
        num_mixtures: int = 20,
        *,
        pen: str = "bernoulli",
        skip: bool = False,
        peephole: bool = False,
        means: str = "linear",
        batch_first: bool = False,
        dropout: float = 0.0,
        clip_gates: float | None = None,
        clip_output: float | None = None,
        recompute: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        checks.check_options(pen, means, num_mixtures)
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be in [0, 1], got {dropout}")
        for name, bound in (("clip_gates", clip_gates), ("clip_output", clip_output)):
            if bound is not None and not 0 < bound < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, or None; got {bound}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.num_mixtures, self.pen, self.skip, self.peephole = num_mixtures, pen, skip, peephole
        self.means, self.batch_first, self.dropout = means, batch_first, dropout
        self.clip_gates, self.clip_output, self.recompute = clip_gates, clip_output, recompute
        self.scale = Scale()

        H = hidden_size
        for n in range(num_layers):
            below = input_size if n == 0 else H + input_size * skip
            shapes = {"weight_ih": (4 * H, below), "weight_hh": (4 * H, H), "bias_ih": (4 * H,), "bias_hh": (4 * H,)}
            if peephole:
                shapes["peephole"] = (3, H)
            for name, shape in shapes.items():
                setattr(self, f"{name}_l{n}", nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        width = checks.PEN_LOGITS[pen] + 6 * num_mixtures
        self.head = nn.Linear(H * (num_layers if skip else 1), width, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/sqrt(H), as nn.LSTM and nn.Linear do."""
        bound = 1 / math.sqrt(self.hidden_size)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if not name.startswith("head."):
                    parameter.uniform_(-bound, bound)
        self.head.reset_parameters()

    def config(self) -> dict[str, Any]:
        """The constructor's arguments but device and dtype."""
        names = (
            "input_size hidden_size num_layers num_mixtures pen skip peephole means batch_first dropout "
            "clip_gates clip_output recompute"
        )
        return {name: getattr(self, name) for name in names.split()}

    def extra_repr(self) -> str:
        """The arguments that are not nn.LSTM's defaults."""
        c = self.config()
        options = "".join(f", {k}={v!r}" for k, v in list(c.items())[4:] if v not in (False, None, 0.0))
        return f"{self.input_size}, {self.hidden_size}, {self.num_layers}, {self.num_mixtures}{options}"

    @overload
    def forward(
        self, input: Tensor | PackedSequence, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[StrokeMixture, State]: ...

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        state: State | None = None,
        lengths: Tensor | None = None,
        *,
        target: Tensor | PackedSequence,
    ) -> tuple[Tensor, State]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        state: State | None = None,
        lengths: Tensor | None = None,
        *,
        target: Tensor | PackedSequence | None = None,
    ) -> tuple[StrokeMixture | Tensor, State]:
        """Run the stack over given inputs.

        The input and the state's h are cast to the weights' dtype; the target is not. Wrappers whose hooks look for
        tensors in the output (DistributedDataParallel with find_unused_parameters) need `target`.

        Args:
            input: (T, B, I), or (B, T, I) with batch_first; (T, I) unbatched; or a PackedSequence.
            state: (h, c), (L, B, H) each ((L, H) unbatched); zero by default.
            lengths: (B) integers; steps from there on are not read, whatever they hold.
            target: rows to be predicted, laid out as the input. Given, the loss is computed without the mixture.

        Returns:
            The mixture over the row after each input, or with `target` its negative log-likelihood in nats (T, B), laid
            out as the input and zero in masked steps; and the state (h, c) after every sequence's last step.

        Raises:
            ValueError: a shape, dtype or length that does not fit.
        """
        x, lengths, batched = self._time_first("input", input, lengths)
        if x.shape[-1] != self.input_size:
            raise ValueError(f"input: expected {self.input_size} features in the last dimension, got {tuple(x.shape)}")
        rows = None
        if target is not None:
            if isinstance(target, PackedSequence) and not isinstance(input, PackedSequence):
                raise ValueError("target: a PackedSequence needs a PackedSequence as input")
            rows, its_lengths, _ = self._time_first("target", target, None)
            if its_lengths is not None and lengths is not None and not torch.equal(its_lengths, lengths):
                raise ValueError(f"target: expected the input's lengths {lengths.tolist()}, got {its_lengths.tolist()}")
            expected = (*x.shape[:2], checks.ROW[self.pen])
            if tuple(rows.shape) != expected:
                raise ValueError(f"target: expected shape {expected} (T, B, row), got {tuple(rows.shape)}")
        state = state if batched else _batched(state)
        out, new_state = self.raw_output(x, state, lengths) if rows is None else self._score(x, rows, state, lengths)
        out = self._laid_out(out, batched)
        if not batched:
            new_state = tuple(v.squeeze(-2) for v in new_state)
        if rows is None:
            return StrokeMixture(out, self.num_mixtures, self.pen, self.means), new_state
        return out, new_state

    @overload
    def nll(self, strokes: Tensor, lengths: Tensor | None = None, state: State | None = None,
            reduction: str = "mean") -> Tensor: ...  # fmt: skip

    @overload
    def nll(self, strokes: Tensor, lengths: Tensor | None = None, state: State | None = None,
            reduction: str = "mean", *, return_state: bool) -> tuple[Tensor, State]: ...  # fmt: skip

    def nll(
        self,
        strokes: Tensor,
        lengths: Tensor | None = None,
        state: State | None = None,
        reduction: str = "mean",
        *,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, State]:
        """Negative log-likelihood of whole sequences, each row predicted from those before it, the first from zeros.

        Args:
            strokes: rows (T, B, 3 or 5), or (B, T, ·) with batch_first.
            lengths: (B) integers.
            state: (h, c), or (h, c, last row) as returned: the first row is then predicted from that row, which makes
                consecutive pieces the same as one long sequence (truncated backpropagation).
            reduction: "mean" per row that counts, "batchmean" per sequence, "sum", or "none" for (T, B) (or (B, T)).
            return_state: also return (h, c, last row), its graph attached.

        Returns:
            Nats. Reductions accumulate in float64.

        Raises:
            ValueError: a shape, option or length that does not fit.
        """
        if reduction not in ("mean", "batchmean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'batchmean', 'sum' or 'none', got {reduction!r}")
        self._check_row_size("nll")
        rows, lengths, batched = self._time_first("strokes", strokes, lengths)
        T, B = rows.shape[:2]
        if rows.shape[-1] != self.input_size:
            raise ValueError(f"strokes: expected rows of {self.input_size} columns, got {tuple(rows.shape)}")
        state = state if batched else _batched(state)
        first = rows.new_zeros(B, self.input_size) if state is None or len(state) == 2 else state[2]
        x = torch.cat([first.to(rows.dtype)[None], rows])
        nll, new_state = self._score(x[:T], rows, None if state is None else state[:2], lengths)
        count = max(T * B, 1) if lengths is None else lengths.sum().clamp(min=1)
        if reduction == "none":
            loss = self._laid_out(nll, batched)
        else:
            total = nll.sum(dtype=torch.float64)
            divisor = {"mean": count, "batchmean": max(B, 1), "sum": 1}[reduction]
            loss = (total / divisor).to(nll.dtype)
        if not return_state:
            return loss
        last = x[T] if lengths is None else x.gather(0, lengths[None, :, None].expand(1, B, x.shape[-1]))[0]
        full = (*new_state, last)
        return loss, full if batched else tuple(v.squeeze(-2) for v in full)

    @torch.no_grad()
    def generate(
        self,
        n: int,
        max_steps: int,
        *,
        seed: int | Tensor | None = None,
        first_index: int | Tensor = 0,
        bias: float | Tensor = 0.0,
        temperature: float | Tensor = 1.0,
        prime: Tensor | None = None,
        prime_lengths: Tensor | None = None,
        state: State | ops.GenerateState | None = None,
        dtype: torch.dtype | None = None,
        to: torch.device | str | None = None,
        chunk: int | None = None,
    ) -> StrokeBatch:
        """Sample n sequences of at most max_steps rows, from first_index on: each a function of the seed and its index.

        What is the same bit for bit: a sequence, whatever n is, its place, `chunk`, and where calls stop and go on; for
        the same weights, `dtype`, options and state, by the C++ kernels on one instruction set or one plan of the GPU's
        on one kind of GPU with one TF32 setting, and by one version of this package, PyTorch and Triton. Which plan is
        chosen depends on n: force one (`with ops.plan("rows"):`) where a job is cut. Else, and by the reference (for
        float64; for float16 on a CPU), every step has the same random numbers, hence from the same state the same
        component and pen but for ties, and the same coordinates to rounding.

        Works under `torch.inference_mode`; and inside a CUDA graph's capture, after a first call outside, with what is
        given lying on the GPU: every replay reads seed, first_index, bias and temperature anew.

        Args:
            n: sequences.
            max_steps: rows of each, the end row of a categorical pen included.
            seed: 64 bits, a number or a tensor; drawn from torch's CPU generator by default.
            first_index: index of the first sequence, so that a job can be cut anywhere.
            bias: b >= 0, a number or (n): neater samples (Graves, equations 61-62).
            temperature: tau > 0, a number or (n).
            prime: rows (n, Tp, I), or (Tp, I) for all, read before the first draw; not in the output.
            prime_lengths: (n) integers.
            state: (h, c) to start from, or a `GenerateState` to go on from (its seed and first_index hold).
            dtype: of the weights while sampling, their own by default. torch.bfloat16 halves what a step reads; sums,
                cell state and strokes stay float32.
            to: where points and lengths shall lie, "cpu" or the model's device, the default. From a GPU to "cpu" they
                are copied into pinned memory while sampling goes on, and may be more than the GPU's memory holds.
            chunk: rows drawn and copied at a time; by default about 64 MiB, or all where nothing has to move.

        Raises:
            ValueError: a shape or option that does not fit.
            RuntimeError: inside a CUDA graph's capture, `to` or `chunk` makes the host wait, or there is no seed.
            torch.OutOfMemoryError: the points or the states do not fit; the message says which number to lower.
        """
        self._check_row_size("generate")
        ops.sizes.check("n", n)
        ops.sizes.check("max_steps", max_steps)
        weights = self._weights()
        with ops.sizes.saying_what_to_lower(n, max_steps, chunk, weights, self.num_layers):
            full = self._generate_state(n, seed, first_index, state)
            if prime is not None:
                prime = torch.as_tensor(prime)
                prime = prime.expand(n, *prime.shape) if prime.dim() == 2 else prime
            points, lengths, new = ops.generate_chunked(
                weights,
                full,
                max_steps,
                to=to,
                chunk=chunk,
                num_mixtures=self.num_mixtures,
                pen=self.pen,
                means=self.means,
                skip=self.skip,
                peephole=self.peephole,
                bias=bias,
                temperature=temperature,
                prime=prime,
                prime_lengths=prime_lengths,
                dtype=dtype,
            )
        return StrokeBatch(points.transpose(0, 1), lengths, new, self.scale)

    @classmethod
    def from_modules(cls, lstm: nn.LSTM, head: nn.Linear, **options: Any) -> FusedLSTMMDN:
        """The same network as nn.LSTM + nn.Linear; pen and M follow from the head's width, P + 6M.

        `options` are further arguments of the constructor (means, clip_gates, clip_output).

        Raises:
            ValueError: a feature of nn.LSTM that this module has not, or a head that does not fit.
        """
        from .modules import from_modules

        return from_modules(cls, lstm, head, options)

    def to_modules(self) -> tuple[nn.LSTM, nn.Linear]:
        """nn.LSTM and nn.Linear with copies of the weights.

        Raises:
            ValueError: the module has skip connections or peepholes, which nn.LSTM has not.
        """
        from .modules import to_modules

        return to_modules(self)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and the weights (safetensors) so that a crash at any point leaves the old or the new."""
        from .checkpoint import save_model

        save_model(self, directory)

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: Any = None) -> FusedLSTMMDN:
        """Read what `save_pretrained` wrote, or the weights that ship with the package ("kanji"); checks the SHA-256.

        Raises:
            CheckpointError: a file is missing, damaged or not of this format.
        """
        from .checkpoint import load_model

        return load_model(directory, device)

    def _layer(self, n: int) -> list[Tensor]:
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"] + ["peephole"] * self.peephole
        return [getattr(self, f"{name}_l{n}") for name in names]

    def _weights(self) -> list[Tensor]:
        layers = [weight for n in range(self.num_layers) for weight in self._layer(n)]
        return [*layers, self.head.weight, self.head.bias]

    def raw_output(self, x: Tensor, state: State | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Raw head output (T, B, P + 6M) and (h, c) from inputs (T, B, I), time first always: equations 1-11."""
        if state is not None:
            self._check_state(state, x.shape[1])
        if lengths is not None:
            x = torch.where(ops.reference.alive(x.shape[0], lengths), x, 0)  # NaN times zero is NaN in a matrix product
        return self._stack(x, state, lengths)

    def _score(self, x: Tensor, rows: Tensor, state: State | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        """nll (T, B) of the rows that follow the inputs, and (h, c); no work on padding where the kernels allow it."""
        if state is not None:
            self._check_state(state, x.shape[1])
        if lengths is None or not ops.runs_on_cpu_kernels(self.head.weight) or bool((lengths == x.shape[0]).all()):
            return self._nll(x, rows, state, lengths)
        packing = Packing(lengths, x.shape[0])
        state = None if state is None else tuple(v[:, packing.order] for v in state)
        nll, new_state = self._nll(packing.pack(x), packing.pack(rows), state, packing.lengths)
        return packing.unpack(nll), tuple(v[:, packing.back] for v in new_state)

    def _nll(self, x: Tensor, rows: Tensor, state: State | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        """As `_score`, of what may be packed: by one operator, unless something needs the layers one by one."""
        network: dict[str, Any] = {"num_mixtures": self.num_mixtures, "pen": self.pen, "means": self.means}
        if self._needs_parts(x):
            packed = x.dim() == 2
            raw, new_state = self._stack(x, state, lengths) if packed else self.raw_output(x, state, lengths)
            if packed:
                raw, rows, lengths = raw[:, None], rows[:, None], None
            nll = ops.mdn_nll(raw, rows, lengths, **network, clip=self.clip_output)
            return nll[:, 0] if packed else nll, new_state
        dtype = self.head.weight.dtype
        return ops.lstm_mdn_nll(
            x.to(dtype),
            rows,
            self._weights(),
            None if state is None else (state[0].to(dtype), state[1]),
            **network,
            skip=self.skip,
            peephole=self.peephole,
            lengths=lengths,
            clip_gates=self.clip_gates,
            clip_output=self.clip_output,
        )

    def _needs_parts(self, x: Tensor) -> bool:
        """Whether the layers are run one by one: where they are more than the operator knows, or where it does more."""
        if (self.training and self.dropout > 0 and self.num_layers > 1) or self._head_is_called():
            return True
        if not torch.is_grad_enabled():
            return False
        trained = [w.requires_grad for w in self._weights()]  # its backward goes through all, frozen ones too
        return self.recompute or (not all(trained) and (any(trained) or x.requires_grad))

    def _head_is_called(self) -> bool:
        """Whether the head has to be called as a module: it is no plain nn.Linear, or somebody listens to its calls."""
        head = self.head
        hooks = head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks
        if type(head) is not nn.Linear or head.bias is None or any(hooks):
            return True
        if torch.compiler.is_compiling():
            return False
        return "forward" in vars(head) or bool(nn.modules.module._has_any_global_hook())

    def _stack(self, x: Tensor, state: State | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Raw head output and (h, c) from inputs (T, B, I), or packed, whose masked steps hold numbers."""
        x = x.to(self.head.weight.dtype)
        outputs: list[Tensor] = []
        last: list[tuple[Tensor, Tensor]] = []
        for n in range(self.num_layers):
            weight_ih, weight_hh, bias_ih, bias_hh, *peephole = self._layer(n)
            inputs = [x] if n == 0 or self.skip else []
            if n:
                inputs.append(nn.functional.dropout(outputs[-1], self.dropout, self.training))
            options: dict[str, Any] = {"lengths": lengths, "clip": self.clip_gates}
            options["peephole"] = peephole[0] if peephole else None
            initial = None if state is None else (state[0][n].to(x.dtype), state[1][n])
            if self.recompute and torch.is_grad_enabled():
                joint = torch.cat([v.to(x.dtype) for v in inputs], dim=-1) if len(inputs) > 1 else inputs[0]
                out, state_n = ops.lstm_layer(joint, weight_ih, bias_ih + bias_hh, weight_hh, initial, **options)
            else:
                xw = side_by_side(inputs, weight_ih, bias_ih + bias_hh)
                out, state_n = ops.lstm(xw, weight_hh, initial, **options)
            outputs.append(out)
            last.append(state_n)
        outputs = outputs if self.skip else outputs[-1:]
        if self._head_is_called():
            raw = self.head(torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0])
        else:
            raw = side_by_side(outputs, self.head.weight, self.head.bias)
        return raw, (torch.stack([h for h, _ in last]), torch.stack([c for _, c in last]))

    def _time_first(
        self, name: str, value: Tensor | PackedSequence, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, bool]:
        """(T, B, ·), lengths on its device, and whether it had a batch dimension."""
        if isinstance(value, PackedSequence):
            if lengths is not None:
                raise ValueError(f"lengths: a PackedSequence {name} has its own, got {lengths}")
            value, lengths = pad_packed_sequence(value)
            return value, lengths.to(value.device), True
        if value.dim() == 2:
            if lengths is not None:
                lengths = lengths.reshape(1)
            lengths = checks.check_lengths(lengths, value.shape[0], 1)
            return value.unsqueeze(1), None if lengths is None else lengths.to(value.device), False
        if value.dim() != 3:
            raise ValueError(f"{name}: expected 2 (unbatched) or 3 dimensions, got shape {tuple(value.shape)}")
        value = value.transpose(0, 1) if self.batch_first else value
        lengths = checks.check_lengths(lengths, value.shape[0], value.shape[1])
        return value, None if lengths is None else lengths.to(value.device), True

    def _laid_out(self, value: Tensor, batched: bool) -> Tensor:
        """(T, B, ...) as the caller lays out its input; a PackedSequence comes back padded, (B, T) if batch_first."""
        if not batched:
            return value.squeeze(1)
        return value.transpose(0, 1) if self.batch_first else value

    def _check_state(self, state: State, B: int) -> None:
        expected = (self.num_layers, B, self.hidden_size)
        for name, value in zip(("h", "c"), state, strict=False):
            if tuple(value.shape) != expected:
                raise ValueError(f"state {name}: expected shape {expected}, got {tuple(value.shape)}")
            if value.device != self.head.weight.device:
                raise ValueError(f"state {name}: expected it on {self.head.weight.device}, got it on {value.device}")

    def _check_row_size(self, method: str) -> None:
        row = checks.ROW[self.pen]
        if self.input_size != row:
            raise ValueError(
                f"{method} feeds rows back: pen={self.pen!r} needs input_size={row}, not {self.input_size}"
            )

    def _generate_state(
        self, n: int, seed: int | Tensor | None, first_index: int | Tensor, state: State | ops.GenerateState | None
    ) -> ops.GenerateState:
        if isinstance(state, ops.GenerateState):
            own = {"seed": seed is None, "first_index": isinstance(first_index, int) and first_index == 0}
            for name in (name for name, absent in own.items() if not absent):
                raise ValueError(f"{name}: a GenerateState has its own, so none can be given")
            self._check_state(state[:2], n)
            return state
        like = self.head.weight
        L, H, acc = self.num_layers, self.hidden_size, ops.reference.accumulate(like.dtype)
        if state is not None:
            if len(state) not in (2, 3):
                raise ValueError(f"state: expected (h, c), (h, c, row) or a GenerateState, got {len(state)} tensors")
            self._check_state(state[:2], n)
        h, c = (like.new_zeros(L, n, H), like.new_zeros(L, n, H, dtype=acc)) if state is None else state[:2]
        row = like.new_zeros(n, self.input_size, dtype=acc) if state is None or len(state) == 2 else state[2]
        if seed is None:
            if ops.launch.capturing(like.device):
                raise RuntimeError(
                    "seed: none can be drawn inside a CUDA graph's capture; give an int64 tensor on the GPU"
                )
            seed = torch.randint(-(1 << 63), (1 << 63) - 1, (), device="cpu")
        return ops.GenerateState(
            h.to(like.dtype),
            c,
            row,
            drawn=torch.zeros(n, dtype=torch.int64, device=like.device),
            done=torch.zeros(n, dtype=torch.bool, device=like.device),
            seed=_int64("seed", seed, like.device),
            first_index=_int64("first_index", first_index, like.device),
        )


def _batched(state: State | None) -> State | None:
    """The state of an unbatched sequence with a batch of one."""
    return None if state is None else tuple(v.unsqueeze(-2) for v in state)


def _int64(name: str, value: int | Tensor, device: torch.device) -> Tensor:
    """A 0-d int64 tensor with the 64 bits of an integer, signed or not; a number is written by the device itself."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(f"{name} must be one integer, got {tuple(value.shape)} of {value.dtype}")
        return value.reshape(()).to(torch.int64)
    return torch.full((), ops.stream.as_64_bits(name, value), dtype=torch.int64, device=device)
