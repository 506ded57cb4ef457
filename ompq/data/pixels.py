"""Pixels to what a network takes, a whole batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ompq.preprocess import Preprocess

_LUMINANCE = (19595, 38470, 7471)


def normalise(images: Tensor, preprocess: Preprocess, white: int = 255) -> Tensor:
    """Normalise pixels: (pixels / `white` − mean) / std, channel by channel.

    Args:
        images: Pixels, n × C × H × W, any dtype; C is 1 (repeated to all channels) or as many as
            `preprocess` names.
        preprocess: Preprocessing whose `mean` and `std` are used.
        white: Value of a white pixel.

    Returns:
        The normalised images, n × channels × H × W, float32; `images` is left as it is.

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
    # Broadcasting against several means repeats the single channel.
    return scaled.sub(mean).div_(std)


def convert_channels(images: Tensor, channels: int, white: int = 255) -> Tensor:
    """Convert grey, RGB or RGBA pixels to each other, value for value as Pillow does.

    Args:
        images: Pixels, n × C × H × W, uint8; C is 1, 3 or 4.
        channels: Wanted number of channels, 1, 3 or 4.
        white: Value of a white pixel, which is that of an opaque one too.

    Returns:
        The pixels, n × `channels` × H × W, uint8; `images` itself where nothing is to do.

    >>> red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    >>> convert_channels(red, 1).item(), convert_channels(red, 4).flatten().tolist()
    (76, [255, 0, 0, 255])
    """
    if images.shape[1] == channels:
        return images
    colours = images[:, :3]
    if channels == 1:
        return _mix_grey(colours)
    if colours.shape[1] == 1:
        colours = colours.expand(-1, 3, -1, -1)
    return colours if channels == 3 else pad(colours, (0, 0, 0, 0, 0, 1), value=white)


def _mix_grey(colours: Tensor) -> Tensor:
    """Mix red, green and blue (n × 3 × H × W) to grey by the shares of ITU-R BT.601 in 2^-16."""
    shares = torch.tensor(_LUMINANCE, dtype=torch.int32).view(3, 1, 1)
    mixed = (colours.int() * shares).sum(dim=1, keepdim=True, dtype=torch.int32)
    return (mixed + 2**15).bitwise_right_shift(16).to(torch.uint8)


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


def shift_and_flip(
    images: Tensor,
    shift: int | tuple[int, int],
    flip: bool,
    seeds: Tensor,
    *,
    repeat_edges: bool = False,
) -> Tensor:
    """Shift each image at random and mirror half of the images.

    Args:
        images: Pixels or normalised images, n × C × H × W, on any device.
        shift: Largest shift in pixels, 0 for none: up or down and left or right, or one for both.
        flip: Whether images may be mirrored at all.
        seeds: One seed for each image, n, int64, at least 0. What happens to an image depends on
            its seed alone.
        repeat_edges: Whether the pixels at the edges move in, rather than zeros.

    Returns:
        The shifted images, n × C × H × W, of the dtype of `images`.
    """
    count, _, height, width = images.shape
    down, right = (shift, shift) if isinstance(shift, int) else shift
    # What a seed leaves of all rows is the row, of all columns the column, and then the coin.
    steps = 2 * down + 1, 2 * right + 1
    rows, columns = seeds % steps[0], seeds // steps[0] % steps[1]
    # `unfold` makes views of all windows; only the chosen one of each image is copied.
    mode = "replicate" if repeat_edges else "constant"
    padded = pad(images, (right, right, down, down), mode=mode)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    shifted = windows[torch.arange(count), :, rows, columns]
    if not flip:
        return shifted
    flipped = (seeds // (steps[0] * steps[1]) % 2 == 1).view(-1, 1, 1, 1)
    return torch.where(flipped.to(images.device), shifted.flip(-1), shifted)
