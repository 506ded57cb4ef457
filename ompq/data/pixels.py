"""Pixels to what a network takes, a whole batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ompq.preprocess import Preprocess


def normalise(images: Tensor, preprocess: Preprocess, white: int = 255) -> Tensor:
    """Normalise pixels: (pixels / `white` − mean) / std, channel by channel.

    Args:
        images: Pixels, n × C × H × W, any dtype; C is 1 (repeated to three channels) or 3.
        preprocess: Preprocessing whose `mean` and `std` are used.
        white: Value of a white pixel.

    Returns:
        The normalised images, n × 3 × H × W, float32; `images` is left as it is.

    >>> grey = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    >>> normalise(grey, Preprocess(1, 1, (0.5,) * 3, (0.25,) * 3)).flatten().tolist()
    [2.0, 2.0, 2.0]
    """
    mean = torch.tensor(preprocess.mean).view(-1, 1, 1)
    std = torch.tensor(preprocess.std).view(-1, 1, 1)
    # A copy even of float32, since what follows works in place to save memory.
    scaled = images.to(torch.float32, copy=True).div_(white)
    if scaled.shape[1] == len(mean):
        return scaled.sub_(mean).div_(std)
    # Broadcasting against three means repeats the single channel.
    return scaled.sub(mean).div_(std)


def resize_and_crop(images: Tensor, preprocess: Preprocess, white: int = 255) -> Tensor:
    """Resize square images to `preprocess.resize` and crop their centre.

    Args:
        images: Pixels, n × C × S × S; they are not resampled where S is `preprocess.resize`.
        preprocess: Preprocessing whose sizes and interpolation are used.
        white: Value of a white pixel; bicubic interpolation overshoots 0 … `white` and is clipped.

    Returns:
        The crops, n × C × input_size × input_size; float32 where they were resized, else of the
        dtype of `images`.
    """
    if images.shape[-1] != preprocess.resize:
        size = (preprocess.resize, preprocess.resize)
        mode = preprocess.interpolation
        images = interpolate(images.float(), size, mode=mode, antialias=True).clamp_(0, white)
    start = round((preprocess.resize - preprocess.input_size) / 2)
    window = slice(start, start + preprocess.input_size)
    return images[..., window, window]


def shift_and_flip(images: Tensor, shift: int, flip: bool, seeds: Tensor) -> Tensor:
    """Shift each image at random, black moving in at its edges, and mirror half of the images.

    Args:
        images: Pixels, n × C × H × W.
        shift: Largest shift in pixels, up or down and left or right; 0 for none.
        flip: Whether images may be mirrored at all.
        seeds: One seed for each image, n, int64, at least 0. What happens to an image depends on
            its seed alone.

    Returns:
        The shifted images, n × C × H × W, of the dtype of `images`.
    """
    count, _, height, width = images.shape
    # The last two digits of a seed to the base `steps` are row and column, the next is the coin.
    steps = 2 * shift + 1
    rows, columns = seeds % steps, seeds // steps % steps
    # `unfold` makes views of all windows; only the chosen one of each image is copied.
    windows = pad(images, (shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    shifted = windows[torch.arange(count), :, rows, columns]
    if not flip:
        return shifted
    flipped = (seeds // steps**2 % 2 == 1).view(-1, 1, 1, 1)
    return torch.where(flipped, shifted.flip(-1), shifted)
