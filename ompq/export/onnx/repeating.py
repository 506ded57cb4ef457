"""Values that every image has a copy of, such as class tokens: as often as there are images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ompq.export.onnx.builder import GraphBuilder
from ompq.graph.layout import ImageLayout


def repeat(
    builder: GraphBuilder, name: str, shape: Sequence[int], layout: ImageLayout, images: str
) -> str:
    """Repeat a value for one image as often as there are images.

    Args:
        builder: Graph that this is added to.
        name: Name of the value.
        shape: Shape of it.
        layout: Where the images are in it.
        images: Name of a value whose first dimension counts the images.
    """
    count = builder.add("Shape", [images], start=0, end=1)
    dim, rank = layout.dim, len(shape) + layout.interleaved
    if layout.interleaved:
        # Rows of one image are apart: every row is repeated by itself.
        dim += 1
        name = _reshape(builder, name, [*shape[:dim], 1, *shape[dim:]])
    ones = (np.ones(size, np.int64) for size in (dim, rank - dim - 1))
    before, after = (builder.constant(each) for each in ones)
    repeats = builder.add("Concat", [before, count, after], axis=0)
    name = builder.add("Tile", [name, repeats])
    if layout.interleaved:
        name = _reshape(builder, name, [*shape[: dim - 1], -1, *shape[dim:]])
    return name


def _reshape(builder: GraphBuilder, name: str, shape: Sequence[int]) -> str:
    return builder.add("Reshape", [name, builder.constant(np.array(shape))])
