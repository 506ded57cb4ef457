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
    """The steps from an image to a network's square input, all in pixels.

    Attributes:
        box: What is cut out of the image first: top, left, height, width.
        resized: What the box is resized to: height, width.
        corner: Where the square is cut out of the resized box: top, left.
        mirrored: Whether the square is mirrored left to right at the end.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    mirrored: bool = False


def choose_view(height: int, width: int, preprocess: Preprocess, seed: int | None) -> View:
    """Choose the view of an image: the random one of `seed`, or the evaluation view for None."""
    if seed is None:
        return compute_evaluation_view(height, width, preprocess)
    return draw_random_view(height, width, preprocess, seed)


def compute_evaluation_view(height: int, width: int, preprocess: Preprocess) -> View:
    """Compute the evaluation view: the shorter side resized, then the centre cropped.

    Sizes are rounded as torchvision's Resize and CenterCrop round them.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        preprocess: Preprocessing whose sizes are used.

    >>> view = compute_evaluation_view(300, 400, Preprocess(input_size=224, resize=256))
    >>> view.resized, view.corner
    ((256, 341), (16, 58))
    """
    shorter, longer = min(height, width), max(height, width)
    # torchvision cuts the longer side off and rounds the corner (half to even).
    long_side = int(preprocess.resize * longer / shorter)
    resized = (preprocess.resize, long_side) if height <= width else (long_side, preprocess.resize)
    top, left = (round((side - preprocess.input_size) / 2) for side in resized)
    return View((0, 0, height, width), resized, (top, left))


def draw_random_view(height: int, width: int, preprocess: Preprocess, seed: int) -> View:
    """Draw a random view: 8 to 100 % of the area, an aspect of 3:4 to 4:3, mirrored or not.

    This is the augmentation of Szegedy et al., "Going deeper with convolutions" (2015). Where no
    box fits into the image in ten attempts, the view is the largest centred one.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        preprocess: Preprocessing whose `input_size` is used.
        seed: Seed that alone decides the view, together with the size of the image.
    """
    generator = torch.Generator().manual_seed(seed)
    resized = (preprocess.input_size, preprocess.input_size)
    for area, aspect, down, right, coin in torch.rand(_ATTEMPTS, 5, generator=generator).tolist():
        pixels = height * width * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
        # Uniform in the logarithm, so that wide and tall boxes are equally likely.
        ratio = math.exp(math.log(_ASPECT[0]) + aspect * math.log(_ASPECT[1] / _ASPECT[0]))
        tall, wide = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
            return View((top, left, tall, wide), resized, mirrored=coin < 0.5)
    return View(_fit_largest_box(height, width), resized, mirrored=coin < 0.5)


def _fit_largest_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Fit the largest box into the image whose aspect is within bounds, in its centre."""
    tall = min(height, max(1, round(width / _ASPECT[0])))
    wide = min(width, max(1, round(height * _ASPECT[1])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide
