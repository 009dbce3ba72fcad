"""Small kernels on which the gate is tested: good and bad grid barriers, matrix products, a stack that is no spill."""

import triton
import triton.language as tl


@triton.jit
def arrive(counter):
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target):
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()


@triton.jit
def exchange(X, H, counter, steps, programs, BLOCK: tl.constexpr, KIND: tl.constexpr):
    """Each step, every program hands a block to its neighbour, in the halves of H in turn; KIND names the barrier."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + i)
    for step in range(steps):
        half = H + step % 2 * programs * BLOCK
        tl.store(half + i, x)
        target = (step + 1) * programs
        if KIND == "good":
            arrive(counter)
            wait(counter, target)
        elif KIND == "good, compare and swap":
            arrive(counter)
            while tl.atomic_cas(counter, -1, -1, sem="acquire", scope="gpu") < target:
                pass
            tl.debug_barrier()
        elif KIND == "no barrier before release":
            tl.atomic_add(counter, 1, sem="release", scope="gpu")
            wait(counter, target)
        elif KIND == "relaxed arrive":
            tl.debug_barrier()
            tl.atomic_add(counter, 1, sem="relaxed", scope="gpu")
            wait(counter, target)
        elif KIND == "arrive in block scope":
            tl.debug_barrier()
            tl.atomic_add(counter, 1, sem="release", scope="cta")
            wait(counter, target)
        elif KIND == "volatile poll":
            arrive(counter)
            while tl.load(counter, volatile=True) < target:
                pass
            tl.debug_barrier()
        elif KIND == "plain poll":
            arrive(counter)
            while tl.load(counter) < target:
                pass
            tl.debug_barrier()
        elif KIND == "relaxed poll":
            arrive(counter)
            while tl.atomic_add(counter, 0, sem="relaxed", scope="gpu") < target:
                pass
            tl.debug_barrier()
        elif KIND == "poll in block scope":
            arrive(counter)
            while tl.atomic_add(counter, 0, sem="acquire", scope="cta") < target:
                pass
            tl.debug_barrier()
        x += tl.load(half + (i + BLOCK) % (programs * BLOCK))
    tl.store(X + i, x)


@triton.jit
def product(
    A,
    B,
    bias,
    C,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A @ B (+ bias) in chunks of the depth, each (first, number, size)."""
    m = tl.arange(0, ROWS)
    n = tl.arange(0, COLUMNS)
    c = tl.zeros((ROWS, COLUMNS), tl.float32)
    if bias is not None:
        c += tl.load(bias + n)[None, :]
    for chunk in tl.static_range(len(CHUNKS)):
        # before Triton 3.8 an element of a nested tuple is a plain int, which static_range refuses
        for part in tl.static_range(tl.constexpr(CHUNKS[chunk][1])):
            k = CHUNKS[chunk][0] + part * CHUNKS[chunk][2] + tl.arange(0, CHUNKS[chunk][2])
            a = tl.load(A + m[:, None] * DEPTH + k[None, :])
            b = tl.load(B + k[:, None] * COLUMNS + n[None, :])
            c = tl.dot(a, b, c, input_precision=PRECISION)
    tl.store(C + m[:, None] * COLUMNS + n[None, :], c.to(C.dtype.element_ty))


@triton.jit
def sine(X, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(X + i, tl.sin(tl.load(X + i)))
