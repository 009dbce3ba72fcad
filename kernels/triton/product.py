"""Products of rows that change with a stationary matrix that stays on chip, for a K that is no power of two.

Blocks in Triton are powers of two wide, and padding H = 400 to 512 would cost 28% more multiply-adds. So K is cut into
CHUNKS ((offset, slices, width), …) that cover it and little more: a chunk has `slices` x `width` columns, and its
product is a batch of `slices` smaller ones. With as many slices as warps, every warp multiplies its own part of K and
reads only its own part of the rows: the chain of dependent matrix instructions is that much shorter. What is narrower
than the warps' chunks has one slice.
"""

import triton
import triton.language as tl


@triton.jit
def stationary(base, columns, known, stride: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr):
    """The matrix as tiles (slices, width, N), element (k, n) at base + k stride + columns[n]; 0 where not known."""
    tiles = ()
    for n in tl.static_range(len(CHUNKS)):
        s, w = tl.arange(0, CHUNKS[n][1]), tl.arange(0, CHUNKS[n][2])
        k = CHUNKS[n][0] + s[:, None, None] * CHUNKS[n][2] + w[None, :, None]
        at = base + k * stride + columns[None, None, :]
        tiles = tiles + (tl.load(at, mask=(k < K) & known[None, None, :], other=0.0),)
    return tiles


@triton.jit
def chunk(rows, valid, n: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr):
    """Chunk n of the rows, (slices, R, width); 0 where not valid."""
    s, w = tl.arange(0, CHUNKS[n][1]), tl.arange(0, CHUNKS[n][2])
    k = CHUNKS[n][0] + s[:, None, None] * CHUNKS[n][2] + w[None, None, :]
    return tl.load(rows[None, :, None] + k, mask=valid[None, :, None] & (k < K), other=0.0)


@triton.jit
def product(
    rows, valid, tiles, K: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows (R) of K elements at pointers `rows`, where valid, else 0, times the matrix: (R, N) in float32.

    AHEAD chunks are on their way while one is multiplied, so that their latencies overlap. On all but the first chunks'
    account that takes shared memory, or registers.
    """
    R: tl.constexpr = rows.shape[0]
    SLICES: tl.constexpr = CHUNKS[0][1]
    acc = tl.zeros((SLICES, R, N), tl.float32)
    rest = tl.zeros((1, R, N), tl.float32)
    loaded = ()
    for n in tl.static_range(min(AHEAD, len(CHUNKS))):
        loaded = loaded + (chunk(rows, valid, n, K, CHUNKS),)
    for n in tl.static_range(len(CHUNKS)):
        if n + AHEAD < len(CHUNKS):
            loaded = loaded + (chunk(rows, valid, n + AHEAD, K, CHUNKS),)
        if CHUNKS[n][1] == SLICES:
            acc = tl.dot(loaded[n], tiles[n], acc, input_precision=PRECISION)
        else:
            rest = tl.dot(loaded[n], tiles[n], rest, input_precision=PRECISION)
    return total(acc, rest)


@triton.jit
def products(
    rows, valid, tiles, others, others_valid, others_tiles, given, K: tl.constexpr, CHUNKS: tl.constexpr,
    AHEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`product` of rows, plus that of other rows, unless their tiles are none, plus what is given, (1, R, N)."""
    R: tl.constexpr = rows.shape[0]
    N: tl.constexpr = given.shape[2]
    SLICES: tl.constexpr = CHUNKS[0][1]
    PIECES: tl.constexpr = len(CHUNKS) + len(others_tiles)
    acc, rest, both = tl.zeros((SLICES, R, N), tl.float32), given, tiles + others_tiles
    loaded = ()
    for n in tl.static_range(min(AHEAD, PIECES)):
        loaded = loaded + (piece(rows, valid, others, others_valid, n, K, CHUNKS),)
    for n in tl.static_range(PIECES):
        if n + AHEAD < PIECES:
            loaded = loaded + (piece(rows, valid, others, others_valid, n + AHEAD, K, CHUNKS),)
        if CHUNKS[n % len(CHUNKS)][1] == SLICES:
            acc = tl.dot(loaded[n], both[n], acc, input_precision=PRECISION)
        else:
            rest = tl.dot(loaded[n], both[n], rest, input_precision=PRECISION)
    return total(acc, rest)


@triton.jit
def total(parts, rest):
    """The sum over SLICES of parts (SLICES, R, N), and rest (1, R, N): (R, N), SLICES being WARPS or 1.

    Every warp holds one slice. tl.sum would write them to shared memory slice by slice next to each other, 16 lanes of
    a warp to one bank, and leave the sum in every warp. Here the slices become the slowest of the dimensions, which a
    thread holds in registers: one conversion, free of conflicts, and three additions.
    """
    SLICES: tl.constexpr = parts.shape[0]
    R: tl.constexpr = parts.shape[1]
    N: tl.constexpr = parts.shape[2]
    if SLICES == 1:
        return tl.reshape(parts + rest, (R, N))
    else:
        tl.static_assert(SLICES == 8)
        first = tl.arange(0, SLICES)[:, None, None] == 0
        x = tl.reshape(parts + tl.where(first, rest, 0.0), (2, 2, 2, R, N))
        a, b = tl.split(tl.permute(x, (1, 2, 3, 4, 0)))
        a, b = tl.split(tl.permute(a + b, (1, 2, 3, 0)))
        a, b = tl.split(tl.permute(a + b, (1, 2, 0)))
        return a + b


@triton.jit
def piece(rows, valid, others, others_valid, n: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr):
    """Chunk n of the rows, then of the others."""
    if n < len(CHUNKS):
        return chunk(rows, valid, n, K, CHUNKS)
    else:
        return chunk(others, others_valid, n - len(CHUNKS), K, CHUNKS)
