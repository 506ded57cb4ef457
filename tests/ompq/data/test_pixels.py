from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

from ompq.data.pixels import convert_channels, normalise, resize_and_crop, shift_and_flip
from ompq.preprocess import Preprocess


def _images(count: int, channels: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, channels, side, side), generator=generator)
    return pixels.to(torch.uint8)


def test_normalise_is_torchvisions() -> None:
    preprocess = Preprocess()
    images = _images(2, 3, 5)
    theirs = transforms.Normalize(preprocess.mean, preprocess.std)(images / 255)
    assert torch.equal(normalise(images, preprocess), theirs)


def test_normalise_repeats_a_single_channel_and_leaves_its_input() -> None:
    images = torch.full((2, 1, 4, 4), 16.0)
    result = normalise(images, Preprocess(4, 4, (0.5,) * 3, (0.25,) * 3), white=16)
    assert result.shape == (2, 3, 4, 4)
    assert (result == 2).all() and (images == 16).all()


def test_resize_keeps_within_black_and_white() -> None:
    images = (_images(3, 1, 8) > 128).to(torch.uint8) * 16
    result = resize_and_crop(images, Preprocess(20, 24, interpolation="bicubic"), white=16)
    assert result.shape == (3, 1, 20, 20)
    assert result.min() >= 0 and result.max() <= 16


@pytest.mark.parametrize(("repeats", "mode"), [(False, "constant"), (True, "replicate")])
@given(st.integers(1, 6), st.integers(0, 3), st.booleans(), st.integers(0, 2**62))
def test_each_image_is_a_window_of_its_padded_self(
    repeats: bool, mode: str, count: int, shift: int, flip: bool, seed: int
) -> None:
    images = _images(count, 2, 6).float()
    seeds = torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(seed))
    result = shift_and_flip(images, shift, flip, seeds, repeat_edges=repeats)
    padded = torch.nn.functional.pad(images, (shift,) * 4, mode=mode)
    for image, source in zip(result, padded, strict=True):
        steps = range(2 * shift + 1)
        windows = [source[:, r : r + 6, c : c + 6] for r in steps for c in steps]
        windows += [window.flip(-1) for window in windows] if flip else []
        assert any(torch.equal(image, window) for window in windows)


def test_shifts_depend_on_the_seed_of_the_image_alone() -> None:
    images = _images(8, 1, 6)
    seeds = torch.arange(8) * 1_000_003
    whole = shift_and_flip(images, 2, True, seeds)
    assert torch.equal(whole[3:5], shift_and_flip(images[3:5], 2, True, seeds[3:5]))
    assert not torch.equal(whole, images)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_converted_as_pillow_does(channels: int, mode: str) -> None:
    images = _images(1, channels, 64)
    array = images[0].permute(1, 2, 0).squeeze(-1).numpy()
    expected = pil_to_tensor(Image.fromarray(array).convert(mode))
    assert torch.equal(convert_channels(images, len(mode))[0], expected)
