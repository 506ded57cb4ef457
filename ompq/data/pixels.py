"""Pixels to what a network takes, a whole batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ompq.preprocess import Preprocess


def normalise(images: Tensor, preprocess: Preprocess, white: int = 255) -> Tensor:
    """(pixels / white − mean) / std.

    Args:
        images: n × C × H × W of any type, C being 1 (repeated to three channels) or 3.
        white: value of a white pixel.

    Returns:
        n × 3 × H × W, float32.
    """
    mean = torch.tensor(preprocess.mean).view(-1, 1, 1)
    std = torch.tensor(preprocess.std).view(-1, 1, 1)
    scaled = images.to(torch.float32, copy=True).div_(white)
    if scaled.shape[1] == len(mean):
        return scaled.sub_(mean).div_(std)
    return scaled.sub(mean).div_(std)


def resize_and_crop(images: Tensor, preprocess: Preprocess, white: int = 255) -> Tensor:
    """Square images resized to `preprocess.resize` and cropped in the centre; as they are if equal.

    Args:
        images: n × C × S × S.
        white: resized pixels are kept within 0..`white`, which bicubic interpolation leaves.
    """
    if images.shape[-1] != preprocess.resize:
        size = (preprocess.resize, preprocess.resize)
        mode = preprocess.interpolation
        images = interpolate(images.float(), size, mode=mode, antialias=True).clamp_(0, white)
    start = round((preprocess.resize - preprocess.input_size) / 2)
    window = slice(start, start + preprocess.input_size)
    return images[..., window, window]


def shift_and_flip(images: Tensor, shift: int, flip: bool, seeds: Tensor) -> Tensor:
    """Shift each image by up to `shift` pixels both ways, black moving in; flip half of them.

    Args:
        images: n × C × H × W.
        shift: in pixels; 0 for none.
        flip: whether to flip at all.
        seeds: n, int64 ≥ 0, which decide alone what happens to each image.
    """
    count, _, height, width = images.shape
    steps = 2 * shift + 1
    rows, columns = seeds % steps, seeds // steps % steps
    windows = pad(images, (shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    shifted = windows[torch.arange(count), :, rows, columns]
    if not flip:
        return shifted
    flipped = (seeds // steps**2 % 2 == 1).view(-1, 1, 1, 1)
    return torch.where(flipped, shifted.flip(-1), shifted)
