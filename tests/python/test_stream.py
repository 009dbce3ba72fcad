"""The random stream: known answers, C++ against PyTorch against NumPy, the law of its normals."""

import fusedmdn.ops as ops
import numpy as np
import pytest
import torch
from fusedmdn.ops import _cpu, stream
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

# Random123 1.14, tests/kat_vectors, philox4x32 10: counter, key, answer
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
any_64_bits = st.integers(-(1 << 63), (1 << 64) - 1)


def words(text):
    return [int(word, 16) for word in text.split()]


def numpy_words(seed, index, step):
    """Philox4x32-10 written from the paper, in NumPy's unsigned integers."""
    c = [np.uint64(v) for v in (index & 0xFFFFFFFF, index >> 32 & 0xFFFFFFFF, step, 0)]
    k = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)]
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> shift) ^ c[1] ^ k[0], p1 & low, (p0 >> shift) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return np.array(c, dtype=np.uint64)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers_reference(counter, key, answer):
    got = stream.philox4x32(tuple(map(torch.tensor, words(counter))), tuple(map(torch.tensor, words(key))))
    assert got.tolist() == words(answer)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers_cpp(counter, key, answer):
    out = np.zeros(4, np.uint32)
    arrays = [np.array(words(v), np.uint32) for v in (key, counter)]
    _cpu.library().fusedmdn_philox_block(*(a.ctypes.data for a in arrays), out.ctypes.data)
    assert out.tolist() == words(answer)


@given(seed=any_64_bits, index=any_64_bits, step=st.integers(0, (1 << 32) - 3))
def test_uniforms_bitwise_equal_everywhere(seed, index, step):
    first_step = torch.tensor([step, 0])
    native = ops.uniforms(seed, index, 2, 3, first_step)
    with ops.backend("reference"):
        assert torch.equal(native, ops.uniforms(seed, index, 2, 3, first_step))
    by_numpy = (numpy_words(seed, index, step) >> np.uint64(9)).astype(np.float64) + 0.5
    assert native[0, 0].double().tolist() == (by_numpy * 2.0**-23).tolist()


def test_uniforms_never_zero_or_one():
    extremes = stream.uniform(torch.tensor([0, 0xFFFFFFFF]))
    assert extremes.tolist() == [2.0**-24, 1 - 2.0**-24]


def test_normals_agree():
    native = ops.normals(3, 5, 100, 100)
    with ops.backend("reference"):
        reference = ops.normals(3, 5, 100, 100)
    torch.testing.assert_close(native, reference, rtol=1e-6, atol=1e-6)


def test_any_part_of_the_stream_is_the_same():
    whole = ops.uniforms(1, 10, 6, 9)
    assert torch.equal(ops.uniforms(1, 13, 2, 4, torch.tensor([5, 2])), torch.stack([whole[3, 5:9], whole[4, 2:6]]))


def test_law():
    n = 250_000
    u, normal = ops.uniforms(11, 0, n // 100, 100), ops.normals(11, 0, n // 100, 100)
    for k in range(4):
        assert stats.kstest(u[..., k].flatten().numpy(), "uniform").pvalue > 1e-4
    for k in range(2):
        assert stats.kstest(normal[..., k].flatten().double().numpy(), "norm").pvalue > 1e-4
    correlation = np.corrcoef(np.concatenate([u.reshape(n, 4).T, normal.reshape(n, 2).T]))
    # words 2 and 3 make the normals: n1 is even in u3 about 1/2 and n2 is odd, so only that pair is correlated
    correlation[3, 5] = correlation[5, 3] = 0
    assert np.abs(correlation - np.eye(6)).max() < 5 / np.sqrt(n)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, -1, 3), "count=-1"),
        ((0, 0, 1, -3), "steps=-3"),
        ((1 << 64, 0, 1, 1), "seed must fit in 64 bits"),
        ((0, -(1 << 63) - 1, 1, 1), "first_index must fit in 64 bits"),
        ((0, 0, 2, 1, torch.zeros(3, dtype=torch.int64)), r"shape \(2,\), got \(3,\)"),
        ((0, 0, 1, 1, torch.tensor([-1])), r"\[0, 2\^32\)"),
        ((0, 0, 1, 2, torch.tensor([(1 << 32) - 1])), r"\[0, 2\^32\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.uniforms(*arguments)


def test_always_on_the_cpu_whatever_the_default_device():
    expected = ops.uniforms(1, 0, 2, 3)
    for name in ("cpu", "reference"):
        with torch.device("meta"), ops.backend(name):
            assert torch.equal(ops.uniforms(1, 0, 2, 3), expected)


def test_any_kind_of_integer():
    expected = ops.uniforms(5, (1 << 63) + 7, 1, 2)
    assert torch.equal(ops.uniforms(np.int64(5), np.uint64((1 << 63) + 7), 1, 2), expected)
    assert torch.equal(ops.uniforms(torch.tensor(5), 7 - (1 << 63), 1, 2), expected)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 1.5"):
        ops.uniforms(1.5, 0, 1, 1)


def test_cpp_refuses_what_it_cannot_do():
    out = torch.full((4,), 7.0)
    lib = _cpu.library()
    for count, steps, normals in ((-1, 1, 0), (1, -1, 0), (1, 1, 2), (1, (1 << 32) + 1, 0)):
        assert lib.fusedmdn_philox_fill(0, 0, count, None, steps, normals, out.data_ptr()) == 1
    assert out.tolist() == [7.0] * 4
