"""Which part of an image a network sees, and how large: geometry shared by all decoders."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ompq.preprocess import Preprocess

_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_ATTEMPTS = 10


@dataclass(frozen=True)
class View:
    """Cut `box` out, resize it to `resized`, cut a square out at `corner`, mirror if `mirrored`.

    `box` is (top, left, height, width), `resized` (height, width), `corner` (top, left), in pixels.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    mirrored: bool = False


def evaluation_view(height: int, width: int, preprocess: Preprocess) -> View:
    """The centre of the image, its shorter side resized; rounded as torchvision does."""
    shorter, longer = min(height, width), max(height, width)
    long_side = int(preprocess.resize * longer / shorter)
    resized = (preprocess.resize, long_side) if height <= width else (long_side, preprocess.resize)
    top, left = (round((side - preprocess.input_size) / 2) for side in resized)
    return View((0, 0, height, width), resized, (top, left))


def random_view(height: int, width: int, preprocess: Preprocess, seed: int) -> View:
    """A random part of 8 to 100 % of the area with an aspect of 3:4 to 4:3, mirrored or not.

    The augmentation of Szegedy et al., "Going deeper with convolutions" (2015). Where no part fits
    in ten attempts, the largest centred one.
    """
    generator = torch.Generator().manual_seed(seed)
    resized = (preprocess.input_size, preprocess.input_size)
    for area, aspect, down, right, coin in torch.rand(_ATTEMPTS, 5, generator=generator).tolist():
        pixels = height * width * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
        ratio = math.exp(math.log(_ASPECT[0]) + aspect * math.log(_ASPECT[1] / _ASPECT[0]))
        tall, wide = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
            return View((top, left, tall, wide), resized, mirrored=coin < 0.5)
    return View(_largest_centred(height, width), resized, mirrored=coin < 0.5)


def _largest_centred(height: int, width: int) -> tuple[int, int, int, int]:
    tall = min(height, max(1, round(width / _ASPECT[0])))
    wide = min(width, max(1, round(height * _ASPECT[1])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide
