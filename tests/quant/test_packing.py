"""Codes at their real bit-width."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgdrq.quant import pack, unpack


@given(st.integers(1, 8), st.booleans(), st.integers(0, 41), st.integers(0, 100))
def test_round_trip(bits, signed, length, seed):
    lowest = -(2 ** (bits - 1)) if signed else 0
    codes = torch.from_numpy(np.random.default_rng(seed).integers(lowest, lowest + 2**bits, length))
    packed = pack(codes, bits, lowest)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(length * bits / 8)
    assert torch.equal(unpack(packed, bits, lowest, (length,)).long(), codes)


@given(st.integers(1, 7), st.integers(0, 41), st.integers(0, 100))
def test_odd_integers(bits, length, seed):
    lowest = 1 - 2**bits
    odd = torch.from_numpy(2 * np.random.default_rng(seed).integers(0, 2**bits, length) + lowest)
    packed = pack(odd, bits, lowest, stride=2)
    assert packed.numel() == math.ceil(length * bits / 8)
    assert torch.equal(unpack(packed, bits, lowest, (length,), stride=2).long(), odd)


@pytest.mark.parametrize(
    ('value', 'words'), [(0, 'multiple of 2'), (5, 'do not fit 2 bits'), (-5, 'do not fit 2 bits')]
)
def test_an_integer_that_is_not_on_the_odd_grid(value, words):
    with pytest.raises(ValueError, match=words):
        pack(torch.tensor([1, value, -3]), 2, -3, stride=2)


@pytest.mark.parametrize('bits', range(2, 9))
def test_shape_and_float_codes_of_a_weight(bits):
    lowest = -(2 ** (bits - 1))
    codes = torch.from_numpy(np.random.default_rng(bits).integers(lowest, -lowest, (5, 3, 3, 1))).float()
    restored = unpack(pack(codes, bits, lowest), bits, lowest, codes.shape)
    assert restored.dtype == torch.int8
    assert torch.equal(restored.float(), codes)


def test_the_layout_is_least_significant_bit_first():
    codes = [3, -4, 1, 0, -1, 2, -3, 3, 1]
    stream = sum((code + 4) << (3 * place) for place, code in enumerate(codes))
    expected = list(stream.to_bytes(math.ceil(len(codes) * 3 / 8), 'little'))
    assert pack(torch.tensor(codes), 3, -4).tolist() == expected


def test_all_codes_of_eight_bits():
    codes = torch.arange(256)
    assert torch.equal(unpack(pack(codes, 8, 0), 8, 0, (256,)).long(), codes)
    assert torch.equal(unpack(pack(codes - 128, 8, -128), 8, -128, (16, 16)).reshape(-1).long(), codes - 128)


@pytest.mark.parametrize('code', [-3, 2, 200, 2**20])
def test_a_code_that_does_not_fit(code):
    with pytest.raises(ValueError, match='do not fit 2 bits'):
        pack(torch.tensor([0, code, 1]), 2, -2)


@pytest.mark.parametrize('change', [-1, 1])
def test_wrong_number_of_bytes(change):
    packed = pack(torch.zeros(11), 3, -4)
    wrong = packed.new_zeros(packed.numel() + change)
    with pytest.raises(ValueError, match=r'5 bytes of torch\.uint8'):
        unpack(wrong, 3, -4, (11,))


def test_wrong_dtype():
    with pytest.raises(ValueError, match=r'torch\.int8'):
        unpack(torch.zeros(5, dtype=torch.int8), 3, -4, (11,))
