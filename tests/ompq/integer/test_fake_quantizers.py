"""Ranges of values, of which there may be none."""

from __future__ import annotations

import pytest
import torch

from ompq.integer import RangeRule
from ompq.integer.fake_quantizers import ActivationFakeQuantizer
from ompq.quantizers import ActivationQuantizer


@pytest.mark.parametrize("percentile", [0.0, 99.9])
def test_a_piece_without_values_tells_nothing(percentile: float) -> None:
    """As rotary embeddings of all channels leave one."""
    quantizer = ActivationFakeQuantizer(8, RangeRule(act_percentile=percentile))
    empty, values = torch.zeros(2, 0, 4), torch.linspace(-1, 3, 50)
    assert quantizer(empty).shape == empty.shape
    quantizer.reset()
    quantizer(values)
    expected = quantizer.get_scale().clone()
    again = ActivationFakeQuantizer(8, RangeRule(act_percentile=percentile, act_range_momentum=-1))
    again(values)
    again(empty)
    torch.testing.assert_close(again.get_scale(), expected)


def test_a_search_among_no_values_leaves_the_scale() -> None:
    quantizer = ActivationQuantizer(4)
    quantizer.fit(torch.linspace(0, 3, 50))
    before = quantizer.params
    quantizer.fit(torch.zeros(0, 3))
    assert torch.equal(quantizer.params.scale, before.scale)
