"""The functions of a network in C, and those from and to floats."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled import COMPILER, Compiled, quantize
from converted import build
from kinds import build_kind, draw_images
from torch import nn

from ompq.errors import OmpqError
from ompq.export.c.source import write_c
from ompq.integer import export_integers

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler `cc`")


def build_plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.Flatten(), nn.Linear(128, 5)
    )


def test_pixels_become_the_integers_of_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = quantize(build_plain(), draw_images(4), 4, 8)
    compiled = Compiled(write_c(network, draw_images(1)), tmp_path)
    numbers = export_integers(network)
    (path,) = (
        name.removesuffix(".scale")
        for name in numbers
        if name.startswith("requ") and name.endswith(".scale")
    )
    scale, (low, high) = numbers[f"{path}.scale"], numbers[f"{path}.bounds"].tolist()
    # Halves, their neighbours in float32, and what lies far out.
    halves = ((torch.arange(768) - 384) / 2 * scale).float()
    for pixels in (halves, torch.nextafter(halves, torch.tensor(9e9)), torch.randn(768) * 1e6):
        expected = torch.round(pixels.double() / scale).clamp(low, high)
        assert np.array_equal(compiled.quantize(pixels.numpy()), expected.numpy())


def test_a_name_that_is_none_in_c_is_refused() -> None:
    network = build(build_kind("convolutional"), draw_images(2))
    with pytest.raises(OmpqError, match="`name`"):
        write_c(network, draw_images(1), "my-model")


def test_all_names_begin_with_the_given_one() -> None:
    network = build(build_kind("convolutional"), draw_images(2))
    source = write_c(network, draw_images(1), "digits")
    assert "void digits_run(const int8_t *image, int32_t *sums);" in source.header
    assert source.source.startswith('#include "digits.h"')
    exported = re.findall(r"^(?!static|#|typedef|enum)[a-z].*?(\w+)[\[(]", source.source, re.M)
    assert exported
    assert all(name.startswith("digits_") for name in exported)
