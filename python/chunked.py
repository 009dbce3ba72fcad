"""Sampling in chunks: each is copied away while the next is drawn, so the points may be more than a GPU's memory holds.

A chunk is a call of `generate` that goes on from the last one's state. Two of them lie on the device at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import sizes
from .functional import GenerateState, generate, per_sequence
from .launch import capturing

CHUNK_BYTES = 1 << 26  # points of a chunk whose rows are not given


def generate_chunked(
    weights: Sequence[Tensor],
    state: GenerateState,
    steps: int,
    *,
    to: torch.device | str | None = None,
    chunk: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, GenerateState]:
    """`generate`, bit for bit, with the points where they are wanted.

    From a GPU to the CPU they are copied into pinned memory while sampling goes on; the host waits for the last copy.
    PyTorch rounds pinned memory up to a power of two, unless PYTORCH_ALLOC_CONF has a pinned_max_round_threshold_mb.

    Args:
        weights: as in `generate`.
        state: as in `generate`.
        steps: as in `generate`.
        to: where points and lengths shall lie: "cpu", or the state's device, the default. The new state stays there.
        chunk: rows drawn at a time, >= 1. By default as many as fit CHUNK_BYTES, or all where nothing has to move.
        options: as in `generate`.

    Returns:
        As `generate`.

    Raises:
        ValueError: as `generate`; or `to` is another device, or chunk < 1.
        RuntimeError: points are to be moved, or drawn in chunks, inside a CUDA graph's capture.
    """
    own, B = state.row.device, state.row.shape[0]
    place = _place(to, own)
    sizes.check("steps", steps)
    if chunk is not None:
        sizes.check("chunk", chunk, least=1)
    if chunk is None and place == own:
        return generate(weights, state, steps, **options)

    chunk = chunk or max(1, CHUNK_BYTES // max(1, state.row.nbytes))
    # Once, not with every chunk: a copy from pageable memory to a GPU waits until all chunks before it are drawn.
    options["bias"] = per_sequence("bias", options.get("bias", 0.0), B, own, 0.0, inclusive=True)
    options["temperature"] = per_sequence("temperature", options.get("temperature", 1.0), B, own, 0.0, inclusive=False)
    state = state._replace(seed=state.seed.to(own), first_index=state.first_index.to(own))
    starts = range(0, max(steps, 1), chunk)  # no steps are a chunk too: there may be a prime to read
    with _SideStream(own) if own.type == "cuda" else _AtOnce() as copies:
        ended = copies.empty(torch.bool, torch.device("cpu"), len(starts))
        for k, t in enumerate(starts):
            copies.wait(all_but=1)
            if k >= 2 and ended[k - 2]:
                break
            drawn, counted, state = generate(weights, state, min(chunk, steps - t), **options)
            if k == 0:  # a GPU is drawing by now, while the host gets its memory
                points = copies.empty(drawn.dtype, place, steps, *drawn.shape[1:])
                total = torch.zeros_like(counted)
                options |= {"prime": None, "prime_lengths": None}
            total += counted
            copies.start((points[t : t + chunk], drawn), (ended[k], state.done.all()))
            rows = t + len(drawn)
        lengths = copies.empty(total.dtype, place, B)
        copies.start((lengths, total))
        points[rows:] = 0
    return points, lengths, state


def _place(to: torch.device | str | None, own: torch.device) -> torch.device:
    """The CPU, or the device where sampling runs, however they are named."""
    try:
        asked = own if to is None else torch.device(to)
    except (RuntimeError, TypeError):
        asked = torch.device("meta")  # no device at all
    if asked.type == "cpu":
        return torch.device("cpu")
    if asked.type == own.type and asked.index in (None, own.index):
        return own
    raise ValueError(f"to must be 'cpu' or the device where the model is, '{own}'; got '{to}'")


class _AtOnce:
    """Copies that are through when `start` returns."""

    def empty(self, dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
        """What can be copied into."""
        return torch.empty(shape, dtype=dtype, device=device)

    def start(self, *copies: tuple[Tensor, Tensor]) -> None:
        """Copy into the first of each pair the second, as it is after all that was queued until now."""
        for into, source in copies:
            into.copy_(source)

    def wait(self, all_but: int) -> None:
        """Until the copies of so many calls of `start` are still under way, at most."""

    def __enter__(self) -> _AtOnce:
        return self

    def __exit__(self, *exception: object) -> None:
        """Until no copy is under way."""


class _SideStream(_AtOnce):
    """Copies from a GPU, on a stream of their own beside the current one, where sampling goes on.

    What is being copied is held: its allocator knows the current stream alone, and would hand the memory out again.
    """

    def __init__(self, device: torch.device) -> None:
        if capturing(device):
            raise RuntimeError("generate: with `to` or `chunk` the host waits, which a CUDA graph's capture forbids")
        self.stream = torch.cuda.Stream(device)
        self.under_way: deque[tuple[torch.cuda.Event, tuple[tuple[Tensor, Tensor], ...]]] = deque()

    def empty(self, dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device, pin_memory=device.type == "cpu")

    def start(self, *copies: tuple[Tensor, Tensor]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            for into, source in copies:
                into.copy_(source, non_blocking=True)
        self.under_way.append((self.stream.record_event(), copies))

    def wait(self, all_but: int) -> None:
        while len(self.under_way) > all_but:
            self.under_way[0][0].synchronize()
            self.under_way.popleft()  # only now

    def __exit__(self, *exception: object) -> None:
        self.stream.synchronize()
