"""What the images of a data set go through for a network: its own word, the data's, the user's.

First what is known of the network: where its author says it (an attribute `preprocess`), that holds
for mean, deviation and channels with every data set. Images of a data set of one native size keep
that size. Last come the user's wishes, one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ompq.data.datasets.registry import DatasetInfo, find_dataset
from ompq.preprocess import Preprocess

if TYPE_CHECKING:
    from ompq.zoo import Network


@dataclass(frozen=True)
class ImageWishes:
    """What a user says of the preprocessing; None where he leaves it as it is.

    Attributes:
        input_size: Side of the square centre crop, in pixels.
        resize: Length that the shorter side is resized to before, in pixels.
        mean: Mean of each channel of pixels in 0..1, or one number for all.
        std: Standard deviation of each channel of pixels in 0..1, or one number for all.
        interpolation: "bilinear" or "bicubic".
    """

    input_size: int | None = None
    resize: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    interpolation: str | None = None


def choose_preprocess(
    dataset: str, network: Network, wishes: ImageWishes | None = None
) -> Preprocess:
    """Choose what the images of a data set go through for a network.

    Nothing is zoomed that nobody asked to be: images of a native size (of the digits, say) keep it,
    and a crop below 100 pixels is made of images resized to just that, unless `resize` or the
    author's preprocessing, made for this very size, says otherwise.

    Args:
        dataset: Name of the data set, one of `DATASETS`.
        network: Network; an attribute `preprocess` of its module is what its author says. One of
            the user's own without it is asked how many channels it takes.
        wishes: What the user says; None for nothing.

    Raises:
        OmpqError: The data set is unknown, or two values contradict each other.

    >>> from ompq.zoo import Network
    >>> own = Network("own.py:make", nn.Conv2d(1, 2, 3), Preprocess(), num_classes=2, source="")
    >>> chosen = choose_preprocess("images", own, ImageWishes(32))
    >>> chosen.resize, chosen.input_size, chosen.channels
    (32, 32, 1)
    """
    wishes = wishes or ImageWishes()
    info = find_dataset(dataset)
    told = getattr(network.module, "preprocess", None)
    if isinstance(told, Preprocess):
        chosen = _fit_size(told, info, wishes)
    else:
        chosen = _crop(info.preprocess or network.preprocess, info, wishes)
        if network.name.rpartition(":")[0].endswith(".py"):
            chosen = chosen.with_channels(find_channels(network.module, chosen))
    if wishes.resize is not None:
        chosen = replace(chosen, resize=wishes.resize)
    if wishes.interpolation is not None:
        chosen = replace(chosen, interpolation=wishes.interpolation)
    return chosen.normalised_by(wishes.mean, wishes.std)


def find_input_shape(network: Network, input_size: int | None = None) -> tuple[int, int, int]:
    """Find channels, height and width of the images that a network takes.

    Args:
        network: Network with its preprocessing.
        input_size: Height and width where they are wished; None for the network's own.
    """
    chosen = choose_preprocess("images", network, ImageWishes(input_size))
    return chosen.channels, chosen.input_size, chosen.input_size


def _fit_size(told: Preprocess, info: DatasetInfo, wishes: ImageWishes) -> Preprocess:
    """Fit what a network's author says to the size of the images."""
    if info.preprocess is None:
        return _crop(told, info, wishes)
    native = info.preprocess.input_size
    if told.input_size in (wishes.input_size, native, native - 2 * info.border):
        return _crop(told, info, wishes)
    return _crop(replace(told, input_size=native, resize=native), info, wishes)


def _crop(known: Preprocess, info: DatasetInfo, wishes: ImageWishes) -> Preprocess:
    """Set the crop that is wished, with the `resize` that goes with it."""
    side = wishes.input_size
    if side is None or side == known.input_size or info.preprocess is None:
        return known.at(side)
    # Out of images of a native size a smaller crop is cut, only a larger one needs a zoom.
    return replace(known, input_size=side, resize=max(side, info.preprocess.input_size))


def find_channels(network: nn.Module, preprocess: Preprocess) -> int:
    """Find how many channels a network takes, by giving it a black image.

    Args:
        network: Network in evaluation mode.
        preprocess: Preprocessing that tells the size of the image, and the number of channels that
            is tried first.

    Returns:
        The first of this number, 1 and 4 with which the network runs; where none does (it may not
        like the size), that of `preprocess`.

    >>> find_channels(nn.Conv2d(1, 2, 3), Preprocess(8, 8))
    1
    """
    tensors = [*network.parameters(), *network.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        return preprocess.channels  # a first image would decide the shapes of its weights
    device = tensors[0].device if tensors else torch.device("cpu")
    side = preprocess.input_size
    for channels in dict.fromkeys((preprocess.channels, 1, 4)):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                network(torch.zeros(1, channels, side, side, device=device))
        except Exception:  # whatever the network's own code raises
            continue
        return channels
    return preprocess.channels
