"""Weights packed for C."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given

from ompq.bitstream import unpack_bits
from ompq.export.c.layers import pack_weights


@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 8), st.booleans(), st.randoms())
def test_weights_are_what_was_packed(
    channels: int, size: int, bits: int, shifted: bool, random: object
) -> None:
    seed = random.randint(0, 2**31)  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(0, 2**bits, (channels, size), generator=generator)
    least = torch.randint(-255, 1, (channels, 1), generator=generator)
    weight = weight + (least if shifted else least[:1])
    packed = pack_weights(weight)
    values = torch.from_numpy(unpack_bits(packed.packed, packed.bits, weight.numel()))
    bases = packed.bases[:, None] if packed.bases.dim() else packed.bases
    assert torch.equal(values.view(channels, size).long() + bases, weight)
    assert packed.bits <= bits or (packed.bits <= 8 and not packed.bases.dim())
    assert packed.is_narrow == bool((weight >= -128).all() and (weight <= 127).all())


def test_symmetric_weights_have_one_base_and_their_width() -> None:
    weight = torch.randint(-7, 8, (16, 8, 3, 3), generator=torch.Generator().manual_seed(0))
    packed = pack_weights(weight)
    assert (packed.bits, int(packed.bases), packed.bases.dim()) == (4, -7, 0)
    assert packed.packed.size == 16 * 8 * 9 // 2


def test_channels_far_apart_have_bases_of_their_own() -> None:
    weight = torch.tensor([0, 100]).view(2, 1) + torch.tensor([0, 1, 2, 3]).repeat(2, 100)
    packed = pack_weights(weight)
    assert (packed.bits, packed.bases.tolist()) == (2, [0, 100])
