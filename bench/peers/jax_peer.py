"""JAX: lax.scan under jit, to sample and to train, and the loss alone."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from torch import Tensor

from fusedmdn import FusedLSTMMDN

from ..problems import Answer, Problem

Params = dict[str, Any]


def to_jax(value: Tensor) -> jax.Array:
    """A JAX array with a tensor's values."""
    return jnp.asarray(value.detach().numpy())


def to_torch(value: jax.Array) -> Tensor:
    """A tensor with a JAX array's values."""
    return torch.tensor(jax.device_get(value))


def parameters(model: FusedLSTMMDN) -> Params:
    """The weights by FusedLSTMMDN's names; matrices transposed, as `x @ w` wants them."""
    return {name: to_jax(p.t().contiguous() if p.dim() == 2 else p) for name, p in model.named_parameters()}


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
    """Mean negative log-likelihood per row, in the log domain."""
    eos, pi, mu_x, mu_y, s_x, s_y, r = split_raw(raw, M)
    x, y, end = jnp.split(target, 3, -1)
    rho = jnp.tanh(r)
    u_x, u_y = (x - mu_x) * jnp.exp(-s_x), (y - mu_y) * jnp.exp(-s_y)
    q = 1 - rho * rho
    z = (u_x * u_x + u_y * u_y - 2 * rho * u_x * u_y) / q
    log_density = -math.log(2 * math.pi) - s_x - s_y - 0.5 * jnp.log(q) - 0.5 * z
    offset = jax.nn.logsumexp(jax.nn.log_softmax(pi, -1) + log_density, -1)
    return (jax.nn.softplus(eos) - end * eos)[..., 0].mean() - offset.mean()


def draw_rows(raw: jax.Array, key: jax.Array, M: int) -> jax.Array:
    """A row (N, 3) from each mixture (N, 1 + 6M)."""
    eos, pi, mu_x, mu_y, s_x, s_y, r = split_raw(raw, M)
    component, normal, uniform = jax.random.split(key, 3)
    j = jax.random.categorical(component, pi)[:, None]
    mu_x, mu_y, s_x, s_y, r = (jnp.take_along_axis(v, j, 1) for v in (mu_x, mu_y, s_x, s_y, r))
    n1, n2 = jnp.split(jax.random.normal(normal, (raw.shape[0], 2)), 2, -1)
    rho = jnp.tanh(r)
    dx, dy = mu_x + jnp.exp(s_x) * n1, mu_y + jnp.exp(s_y) * (rho * n1 + jnp.sqrt(1 - rho * rho) * n2)
    end = (jax.random.uniform(uniform, eos.shape) < jax.nn.sigmoid(eos)).astype(raw.dtype)
    return jnp.concatenate([dx, dy, end], -1)


class JaxSampler:
    """A scan over steps; each layer is one product of [input, h] with its two matrices stacked beforehand."""

    def __init__(self, model: FusedLSTMMDN) -> None:
        p = parameters(model)
        self.L, self.H, self.M, self.skip = model.num_layers, model.hidden_size, model.num_mixtures, model.skip
        self.weights = [jnp.concatenate([p[f"weight_ih_l{n}"], p[f"weight_hh_l{n}"]]) for n in range(self.L)]
        self.biases = [p[f"bias_ih_l{n}"] + p[f"bias_hh_l{n}"] for n in range(self.L)]
        self.all = self.weights, self.biases, p["head.weight"], p["head.bias"]
        self._raw = jax.jit(self._teacher_forced)
        self._draw = jax.jit(functools.partial(draw_rows, M=self.M))
        self._sample = jax.jit(self._free_running, static_argnums=(2, 3))

    def raw(self, x: Tensor) -> Tensor:
        """See `Sampler.raw`."""
        return to_torch(self._raw(self.all, to_jax(x)))

    def draw(self, raw: Tensor) -> Tensor:
        """See `Sampler.draw`."""
        return to_torch(self._draw(to_jax(raw), jax.random.key(0)))

    def sample(self, batch: int, steps: int) -> jax.Array:
        """See `Sampler.sample`."""
        return jax.block_until_ready(self._sample(self.all, jax.random.key(0), batch, steps))

    def _start(self, batch: int) -> tuple[list[jax.Array], list[jax.Array]]:
        h, c = ([jnp.zeros((batch, self.H)) for _ in range(self.L)] for _ in "hc")
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
            raw, state = self._step(weights, row, state)
            return state, raw

        return lax.scan(body, self._start(x.shape[1]), x)[1]

    def _free_running(self, weights: Any, key: jax.Array, batch: int, steps: int) -> jax.Array:
        def body(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            raw, state = self._step(weights, *carry)
            row = draw_rows(raw, key, self.M)
            return (row, state), row

        start = jnp.zeros((batch, 3)), self._start(batch)
        return lax.scan(body, start, jax.random.split(key, steps))[1]


class JaxTrainer:
    """value_and_grad of a scan for each layer, its input projection one product over all steps."""

    def __init__(self, model: FusedLSTMMDN) -> None:
        self.L, self.M, self.skip = model.num_layers, model.num_mixtures, model.skip
        self.parameters = parameters(model)
        self._value_and_grad = jax.jit(jax.value_and_grad(self._loss))
        self._given: tuple[Problem, jax.Array, jax.Array] | None = None

    def step(self, problem: Problem) -> tuple[jax.Array, Params]:
        """Loss and gradients; the problem is copied to JAX once, not in every step."""
        if self._given is None or self._given[0] is not problem:
            self._given = problem, to_jax(problem.x), to_jax(problem.target)
        return jax.block_until_ready(self._value_and_grad(self.parameters, *self._given[1:]))

    def answer(self, problem: Problem) -> Answer:
        """What a step computes."""
        loss, gradients = self.step(problem)
        tensors = {name: to_torch(gradient) for name, gradient in gradients.items()}
        return Answer(float(loss), {name: v.t() if v.dim() == 2 else v for name, v in tensors.items()})

    def _loss(self, p: Params, x: jax.Array, target: jax.Array) -> jax.Array:
        outputs: list[jax.Array] = []
        for n in range(self.L):
            below = jnp.concatenate(inputs_of(x, outputs, self.skip), -1)
            outputs.append(self._layer(p, n, below))
        top = jnp.concatenate(outputs, -1) if self.skip else outputs[-1]
        return nll(top @ p["head.weight"] + p["head.bias"], target, self.M)

    def _layer(self, p: Params, n: int, below: jax.Array) -> jax.Array:
        weight = p[f"weight_hh_l{n}"]

        def body(state: Any, z: jax.Array) -> tuple[Any, jax.Array]:
            h, c = gates(z + state[0] @ weight, state[1])
            return (h, c), h

        zero = jnp.zeros((below.shape[1], weight.shape[0]))
        projected = below @ p[f"weight_ih_l{n}"] + p[f"bias_ih_l{n}"] + p[f"bias_hh_l{n}"]
        return lax.scan(body, (zero, zero), projected)[1]


class JaxLoss:
    """value_and_grad of the loss alone, rows flat: the shape at which XLA is fastest."""

    def __init__(self, raw: Tensor, target: Tensor, M: int) -> None:
        self.shape = raw.shape
        self.raw, self.target = to_jax(raw.flatten(0, -2)), to_jax(target.flatten(0, -2))
        self._value_and_grad = jax.jit(jax.value_and_grad(functools.partial(nll, M=M)))

    def step(self) -> tuple[jax.Array, jax.Array]:
        """Loss and gradient of raw."""
        return jax.block_until_ready(self._value_and_grad(self.raw, self.target))

    def answer(self) -> Answer:
        """What a step computes."""
        loss, gradient = self.step()
        return Answer(float(loss), {"raw": to_torch(gradient).reshape(self.shape)})
