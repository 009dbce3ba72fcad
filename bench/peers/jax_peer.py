"""JAX: lax.scan under jit, to sample and to train, and the loss alone."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from torch import Tensor

from fusedmdn import FusedLSTMMDN

from ..cell import Cannot
from ..contracts import Loss
from ..problems import Answer, Problem
from .limits import refuse_tf32_on_cpu
from .training import SCALE

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else it takes three quarters of a GPU's memory

Params = dict[str, Any]
ELEMENTS = {"float32": jnp.float32, "tf32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}
PRECISION = {"tf32": "tensorfloat32"}  # of products; else the highest, as a GPU's default is TF32


def jax_device(device: torch.device) -> jax.Device:
    """JAX's own name of a device; raises Cannot where it sees none."""
    try:
        return jax.devices("gpu" if device.type == "cuda" else "cpu")[device.index or 0]
    except RuntimeError as missing:
        raise Cannot(f"JAX sees no {device.type} device: {str(missing).splitlines()[0]}") from missing


def to_jax(value: Tensor) -> jax.Array:
    """A JAX array with a tensor's values, on its device."""
    return jax.device_put(value.detach().cpu().numpy(), jax_device(value.device))


def to_torch(value: jax.Array, device: torch.device) -> Tensor:
    """A tensor with a JAX array's values."""
    return torch.tensor(jax.device_get(value.astype(jnp.float32)), device=device)


def parameters(model: FusedLSTMMDN) -> Params:
    """The weights by FusedLSTMMDN's names; matrices transposed, as `x @ w` wants them."""
    return {name: to_jax(p.t().contiguous() if p.dim() == 2 else p) for name, p in model.named_parameters()}


def jitted(function: Callable[..., Any], dtype: str, **options: Any) -> Callable[..., Any]:
    """jax.jit, its products in a precision."""

    def precise(*arguments: Any) -> Any:
        with jax.default_matmul_precision(PRECISION.get(dtype, "highest")):
            return function(*arguments)

    return jax.jit(precise, **options)


def gates(z: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """New h and c from pre-activations in the order i, f, g, o."""
    i, f, g, o = jnp.split(z, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def inputs_of(x: jax.Array, below: list[jax.Array], skip: bool) -> list[jax.Array]:
    """The parts of the next layer's input."""
    if not below:
        return [x]
    return [x, below[-1]] if skip else [below[-1]]


def split_raw(raw: jax.Array, M: int) -> list[jax.Array]:
    """Raw (..., 1 + 6M) in its seven parts."""
    return jnp.split(raw, [1 + k * M for k in range(6)], -1)


def nll(raw: jax.Array, target: jax.Array, M: int) -> jax.Array:
    """Mean negative log-likelihood per row, in the log domain and in float32."""
    eos, pi, mu_x, mu_y, s_x, s_y, r = split_raw(raw.astype(jnp.float32), M)
    x, y, end = jnp.split(target, 3, -1)
    rho = jnp.tanh(r)
    u_x, u_y = (x - mu_x) * jnp.exp(-s_x), (y - mu_y) * jnp.exp(-s_y)
    q = 1 - rho * rho
    z = (u_x * u_x + u_y * u_y - 2 * rho * u_x * u_y) / q
    log_density = -math.log(2 * math.pi) - s_x - s_y - 0.5 * jnp.log(q) - 0.5 * z
    offset = jax.nn.logsumexp(jax.nn.log_softmax(pi, -1) + log_density, -1)
    return (jax.nn.softplus(eos) - end * eos)[..., 0].mean() - offset.mean()


def draw_rows(raw: jax.Array, key: jax.Array, M: int) -> jax.Array:
    """A row (N, 3) from each mixture (N, 1 + 6M), in float32."""
    eos, pi, mu_x, mu_y, s_x, s_y, r = split_raw(raw.astype(jnp.float32), M)
    component, normal, uniform = jax.random.split(key, 3)
    j = jax.random.categorical(component, pi)[:, None]
    mu_x, mu_y, s_x, s_y, r = (jnp.take_along_axis(v, j, 1) for v in (mu_x, mu_y, s_x, s_y, r))
    n1, n2 = jnp.split(jax.random.normal(normal, (raw.shape[0], 2)), 2, -1)
    rho = jnp.tanh(r)
    dx, dy = mu_x + jnp.exp(s_x) * n1, mu_y + jnp.exp(s_y) * (rho * n1 + jnp.sqrt(1 - rho * rho) * n2)
    end = (jax.random.uniform(uniform, eos.shape) < jax.nn.sigmoid(eos)).astype(jnp.float32)
    return jnp.concatenate([dx, dy, end], -1)


class JaxSampler:
    """A scan over steps; each layer is one product of [input, h] with its two matrices stacked beforehand."""

    def __init__(self, model: FusedLSTMMDN, dtype: str, threads: int) -> None:
        refuse_tf32_on_cpu(dtype, model.head.weight.device)
        self.device, self.dtype = model.head.weight.device, ELEMENTS[dtype]
        p = {name: value.astype(self.dtype) for name, value in parameters(model).items()}
        self.L, self.H, self.M, self.skip = model.num_layers, model.hidden_size, model.num_mixtures, model.skip
        self.weights = [jnp.concatenate([p[f"weight_ih_l{n}"], p[f"weight_hh_l{n}"]]) for n in range(self.L)]
        self.biases = [p[f"bias_ih_l{n}"] + p[f"bias_hh_l{n}"] for n in range(self.L)]
        self.all = self.weights, self.biases, p["head.weight"], p["head.bias"]
        self._raw = jitted(self._teacher_forced, dtype)
        self._draw = jitted(functools.partial(draw_rows, M=self.M), dtype)
        self._sample = jitted(self._free_running, dtype, static_argnums=(2, 3))

    def raw(self, x: Tensor) -> Tensor:
        """See `Sampler.raw`."""
        return to_torch(self._raw(self.all, to_jax(x)), self.device)

    def draw(self, raw: Tensor) -> Tensor:
        """See `Sampler.draw`."""
        return to_torch(self._draw(to_jax(raw), jax.random.key(0)), self.device)

    def sample(self, batch: int, steps: int) -> jax.Array:
        """See `Sampler.sample`."""
        return jax.block_until_ready(self._sample(self.all, jax.random.key(0), batch, steps))

    def _start(self, batch: int) -> tuple[list[jax.Array], list[jax.Array]]:
        h, c = ([jnp.zeros((batch, self.H), self.dtype) for _ in range(self.L)] for _ in "hc")
        return h, c

    def _step(self, weights: Any, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        matrices, biases, head, head_bias = weights
        h, c = state
        new_h: list[jax.Array] = []
        new_c: list[jax.Array] = []
        for n, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
            z = jnp.concatenate([*inputs_of(x, new_h, self.skip), h[n]], -1) @ matrix + bias
            h_n, c_n = gates(z, c[n])
            new_h.append(h_n)
            new_c.append(c_n)
        top = jnp.concatenate(new_h, -1) if self.skip else new_h[-1]
        return top @ head + head_bias, (new_h, new_c)

    def _teacher_forced(self, weights: Any, x: jax.Array) -> jax.Array:
        def body(state: Any, row: jax.Array) -> tuple[Any, jax.Array]:
            raw, state = self._step(weights, row.astype(self.dtype), state)
            return state, raw

        return lax.scan(body, self._start(x.shape[1]), x)[1]

    def _free_running(self, weights: Any, key: jax.Array, batch: int, steps: int) -> jax.Array:
        def body(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            raw, state = self._step(weights, carry[0].astype(self.dtype), carry[1])
            row = draw_rows(raw, key, self.M)
            return (row, state), row

        start = jnp.zeros((batch, 3)), self._start(batch)
        return lax.scan(body, start, jax.random.split(key, steps))[1]


class JaxTrainer:
    """value_and_grad of a scan for each layer, its input projection one product over all steps.

    In bf16 and fp16 weights and inputs are cast inside the loss, so that gradients are float32, and the recurrent ones
    inside the loop, so that their gradients' sums over the steps are; biases are added, and the likelihood computed, in
    float32; fp16 scales the loss.

    Raises:
        Cannot: ragged sequences, TF32 on a CPU, or a device that JAX does not see.
    """

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str) -> None:
        if problem.lengths is not None:
            raise Cannot("a scan has no lengths")
        refuse_tf32_on_cpu(dtype, model.head.weight.device)
        self.device, self.dtype = model.head.weight.device, ELEMENTS[dtype]
        self.L, self.M, self.skip = model.num_layers, model.num_mixtures, model.skip
        self.scale = SCALE if dtype == "fp16" else 1.0
        self.given = parameters(model), to_jax(problem.x), to_jax(problem.target)
        self._value_and_grad = jitted(jax.value_and_grad(self._loss), dtype)
        self.phases = {"forward + backward": self.step}

    def step(self) -> tuple[jax.Array, Params]:
        """Loss and gradients, both scaled in fp16."""
        return jax.block_until_ready(self._value_and_grad(*self.given))

    def clear(self) -> None:
        """See `Trainer.clear`; nothing is left behind."""

    def answer(self) -> Answer:
        """See `Trainer.answer`."""
        loss, gradients = self.step()
        tensors = {name: to_torch(gradient, self.device) / self.scale for name, gradient in gradients.items()}
        given = {name: v.t() if v.dim() == 2 else v for name, v in tensors.items()}
        return Answer(float(loss) / self.scale, given)

    def _loss(self, p: Params, x: jax.Array, target: jax.Array) -> jax.Array:
        uncast = {name: value for name, value in p.items() if "weight_hh" in name or "bias" in name}
        p, x = {name: value.astype(self.dtype) for name, value in p.items()} | uncast, x.astype(self.dtype)
        outputs: list[jax.Array] = []
        for n in range(self.L):
            below = jnp.concatenate(inputs_of(x, outputs, self.skip), -1)
            outputs.append(self._layer(p, n, below))
        top = jnp.concatenate(outputs, -1) if self.skip else outputs[-1]
        raw = (top @ p["head.weight"] + p["head.bias"]).astype(jnp.float32)
        return self.scale * nll(raw, target, self.M)

    def _layer(self, p: Params, n: int, below: jax.Array) -> jax.Array:
        weight = p[f"weight_hh_l{n}"]

        def body(state: Any, z: jax.Array) -> tuple[Any, jax.Array]:
            h, c = gates(z + state[0] @ weight.astype(self.dtype), state[1])
            return (h, c), h

        zero = jnp.zeros((below.shape[1], weight.shape[0]), self.dtype)
        projected = below @ p[f"weight_ih_l{n}"] + (p[f"bias_ih_l{n}"] + p[f"bias_hh_l{n}"])
        projected = projected.astype(self.dtype)
        return lax.scan(body, (zero, zero), projected)[1]


@functools.cache
def _value_and_grad(M: int) -> Callable[..., Any]:
    return jax.jit(jax.value_and_grad(functools.partial(nll, M=M)))


class _Loss(torch.autograd.Function):
    """JAX computes value and gradient at once, rows flat: the shape at which XLA is fastest. Nothing is copied."""

    @staticmethod
    def forward(context: Any, raw: Tensor, target: Tensor, M: int) -> Tensor:
        jax_device(raw.device)
        given = (jax.dlpack.from_dlpack(value.detach().flatten(0, -2)) for value in (raw, target))
        value, gradient = jax.block_until_ready(_value_and_grad(M)(*given))
        context.gradient = torch.from_dlpack(gradient).view_as(raw)
        return torch.from_dlpack(value)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        one = grad.item() == 1  # so a plain backward pass has nothing to multiply
        return (context.gradient if one else context.gradient * grad.to(context.gradient.dtype)), None, None


def jax_mean(M: int) -> Loss:
    """Mean of `nll` as a differentiable function of tensors: its forward pass does the work of both."""
    return lambda raw, target: _Loss.apply(raw, target, M)
