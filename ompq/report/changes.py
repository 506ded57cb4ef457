"""The images whose class another network sees otherwise: how many, and some to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ompq.evaluation import Predictions
from ompq.export.test_images import TestImages
from ompq.preprocess import Preprocess

FORMAT = "ompq-changes/1"
FILE = "changes.json"
_SHOWN = 24
_LARGEST_SIDE = 96


@dataclass
class Changes:
    """Images that two networks see otherwise.

    Attributes:
        num_images: How many images were looked at.
        changed: How many of them have another class.
        repaired: How many have the right class in the second network alone.
        broken: How many have the right class in the first network alone.
        labelled: Whether the right classes are known.
        images: Some of them: `index`, `label` (−1 without), the classes `float` and `quantized`,
            and the `picture` as a data URL.
    """

    num_images: int = 0
    changed: int = 0
    repaired: int = 0
    broken: int = 0
    labelled: bool = False
    images: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Changes) -> None:
        """Add what another process found in other images."""
        self.num_images += other.num_images
        self.changed += other.changed
        self.repaired += other.repaired
        self.broken += other.broken
        self.labelled |= other.labelled
        self.images = [*self.images, *other.images][:_SHOWN]

    def to_json(self, class_names: Sequence[str] = ()) -> dict[str, Any]:
        """Return the content of `changes.json`.

        Args:
            class_names: Names of the network's classes; empty where they are not known.
        """
        return {"format": FORMAT, **vars(self), "class_names": list(class_names)}


def find_changes(
    first: Predictions,
    second: Predictions,
    batches: Iterable[tuple[Tensor, Tensor]],
    preprocess: Preprocess,
) -> Changes:
    """Find the images that two networks see otherwise.

    Args:
        first: Predictions of the first network, the float one.
        second: Predictions of the second network for the same images in the same order.
        batches: These images (n × channels × height × width, normalised) and labels, once more;
            they are read until enough are found to be shown.
        preprocess: Preprocessing that the images went through.
    """
    if not len(first):
        return Changes()
    before, after, labels = first.classes[:, 0], second.classes[:, 0], first.labels
    differs = before != after
    chosen = differs.nonzero().flatten()[:_SHOWN].tolist()
    pictures = _pick_images(batches, chosen)
    drawn = _draw(torch.stack(pictures), preprocess) if pictures else []
    shown = [
        {
            "index": index,
            "label": int(labels[index]),
            "float": int(before[index]),
            "quantized": int(after[index]),
            "picture": picture,
        }
        for index, picture in zip(chosen, drawn, strict=False)
    ]
    return Changes(
        num_images=len(first),
        changed=int(differs.sum()),
        repaired=int((differs & (after == labels)).sum()),
        broken=int((differs & (before == labels)).sum()),
        labelled=first.has_labels,
        images=shown,
    )


def _pick_images(batches: Iterable[tuple[Tensor, Tensor]], chosen: Sequence[int]) -> list[Tensor]:
    """Return the images with these indices, in ascending order."""
    found: list[Tensor] = []
    start = 0
    wanted = list(chosen)
    if not wanted:
        return found
    for images, _ in batches:
        end = start + len(images)
        found += [images[index - start].cpu() for index in wanted if start <= index < end]
        if wanted[-1] < end:
            break
        start = end
    return found


def _draw(images: Tensor, preprocess: Preprocess) -> list[str]:
    """Return normalised images as data URLs of small pictures."""
    pixels = TestImages.of(images, preprocess).pixels
    # One channel is grey, three are colours; of others the first is shown.
    channels = 3 if pixels.shape[1] == 3 else 1
    return [_encode(image[:channels].permute(1, 2, 0).numpy()) for image in pixels]


def _encode(pixels: np.ndarray) -> str:
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    small = max(picture.size) <= _LARGEST_SIDE
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    held = io.BytesIO()
    # Small pictures are kept as they are; of large ones a good impression is enough.
    kind = "PNG" if small else "JPEG"
    picture.save(held, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(held.getvalue()).decode()
