"""Where the images are in a value: along which dimension, and how many rows each of them has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageLayout:
    """The place of n images in a value, which most networks keep in its first dimension.

    Attributes:
        dim: Dimension that the images lie along.
        rows: Rows of that dimension that belong to one image (tiles, windows).
        interleaved: Whether the rows of one image are n apart, rather than neighbours.
    """

    dim: int = 0
    rows: int = 1
    interleaved: bool = False

    def split(self, value: Tensor) -> Tensor:
        """Arrange a value so that its images come first: n × rows × …, without rows if it is one.

        >>> tiles = torch.arange(6)  # two images of three tiles each
        >>> ImageLayout(rows=3).split(tiles).tolist()
        [[0, 1, 2], [3, 4, 5]]
        >>> ImageLayout(rows=3, interleaved=True).split(tiles).tolist()
        [[0, 2, 4], [1, 3, 5]]
        """
        value = value if self.dim == 0 else value.movedim(self.dim, 0)
        if self.rows == 1:
            return value
        if self.interleaved:
            return value.unflatten(0, (self.rows, -1)).transpose(0, 1)
        return value.unflatten(0, (-1, self.rows))

    def join(self, images: Tensor) -> Tensor:
        """Arrange images, as `split` gives them, as the network has them."""
        if self == ImageLayout():
            return images
        if self.rows > 1:
            images = images.transpose(0, 1) if self.interleaved else images
            images = images.flatten(0, 1)
        return images.movedim(0, self.dim).contiguous()


def find_layout(of_one: Tensor, of_two: Tensor) -> ImageLayout | None:
    """Find where the images are in a value, from the values for one image and for it and another.

    Args:
        of_one: Value for one image; with one row along every dimension, only its shape counts.
        of_two: Value for that image and a second one.

    Returns:
        The layout; None where the images cannot be told apart.
    """
    if of_one.dim() != of_two.dim():
        return None
    pairs = enumerate(zip(of_one.shape, of_two.shape, strict=True))
    differing = [(dim, one, two) for dim, (one, two) in pairs if one != two]
    if len(differing) != 1 or differing[0][2] != 2 * differing[0][1]:
        return None
    dim, rows, _ = differing[0]
    if rows == 1:
        return ImageLayout(dim)
    for interleaved in (False, True):
        layout = ImageLayout(dim, rows, interleaved)
        first = layout.split(of_two)[:1]
        if torch.allclose(layout.join(first), of_one, rtol=1e-3, atol=1e-5, equal_nan=True):
            return layout
    return None
