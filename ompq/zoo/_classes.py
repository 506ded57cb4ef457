"""How many classes a network has, found by running it, and how many its weights have."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

# Sides of an image that are tried where the network does not take its own preprocessing's.
_OTHER_SIDES = (32, 224, 64, 128, 28, 8)


def count_classes(module: nn.Module, preprocess: Preprocess) -> int:
    """Count the logits of one image, by computing them.

    The shapes alone are computed (on PyTorch's meta device), which costs some milliseconds whatever
    the size of the network and of the image; a network that cannot do so is run. A network that
    takes no image of any size has as many classes as its last convolution or linear layer, in the
    order of definition, has outputs.

    Args:
        module: Network; it is not changed.
        preprocess: Preprocessing of its images, which tells their size and channels.

    Raises:
        OmpqError: The network cannot be run and holds neither a convolution nor a linear layer.
    """
    shapes = list(_list_input_shapes(module, preprocess))
    for device in ("meta", "cpu"):
        copied = _copy_to(module, device)
        for shape in shapes:
            classes = _read_classes(_try_forward(copied, shape, device))
            if classes is not None:
                return classes
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        raise OmpqError(f"{type(module).__name__} holds no convolution and no linear layer")
    return layers[-1].weight.shape[0]


def tell_classes(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], classes: int
) -> int | None:
    """Tell from the weights how many classes the network must have to fit them.

    A dimension that differs, and that is the number of classes (or a multiple of it) in the
    network, is the number of classes (or that multiple of it) in the weights.

    Args:
        own: Tensors of the network.
        given: Weights under the network's names.
        classes: Number of classes of the network.

    Returns:
        The number; None where the weights do not differ in this, or contradict each other.

    >>> own, given = torch.zeros(4, 16), torch.zeros(7, 16)
    >>> tell_classes({"fc.weight": own}, {"fc.weight": given}, classes=4)
    7
    """
    told: set[int] = set()
    for name, tensor in given.items():
        if name not in own:
            continue
        mine, theirs = _drop_ones(own[name].shape), _drop_ones(tensor.shape)
        if mine == theirs or len(mine) != len(theirs):
            continue
        for size, wanted in zip(mine, theirs, strict=True):
            factor = size // classes
            if size != wanted and not size % classes and not wanted % factor:
                told.add(wanted // factor)
    return told.pop() if len(told) == 1 else None


def _drop_ones(shape: Iterable[int]) -> tuple[int, ...]:
    """Drop the last dimensions of length 1: a 1×1 convolution is a linear layer."""
    kept = list(shape)
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def _list_input_shapes(module: nn.Module, preprocess: Preprocess) -> Iterator[tuple[int, ...]]:
    """List shapes of two images that the network may take, those of its preprocessing first."""
    channels = [preprocess.channels]
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            channels += [layer.in_channels] if layer.in_channels not in channels else []
            break
    for side in dict.fromkeys((preprocess.input_size, *_OTHER_SIDES)):
        for count in channels:
            yield (2, count, side, side)


def _copy_to(module: nn.Module, device: str) -> nn.Module:
    """Copy a network: on the meta device without values, on the CPU with its parameters shared.

    The copy keeps apart whatever a forward pass writes down in the network.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = (
            nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            if device == "meta"
            else parameter
        )
    if device == "meta":
        memo |= {id(buffer): buffer.detach().to("meta") for buffer in module.buffers()}
    try:
        return copy.deepcopy(module, memo).eval()
    except (RuntimeError, TypeError):
        # Modules that keep computed tensors (weight_norm) or locks cannot be copied.
        return module.eval()


@torch.no_grad()
def _try_forward(module: nn.Module, shape: tuple[int, ...], device: str) -> Any:
    """Return what the network makes of black images, None where it cannot take them."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.device(device),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            return module(torch.zeros(shape))
        except Exception:  # whatever the network's own code raises for an image of wrong shape
            return None


def _read_classes(output: Any) -> int | None:
    """Read the number of classes from the shape of logits; of several outputs the first counts."""
    if isinstance(output, Mapping):
        output = output.get("logits", output.get("out", next(iter(output.values()), None)))
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim < 2:
        return None
    lengths = [length for length in output.shape[1:] if length > 1]
    if len(lengths) <= 1:
        return lengths[0] if lengths else 1
    # Logits of every pixel, n × classes × height × width; of every token, the classes come last.
    return int(output.shape[1] if output.ndim == 4 else output.shape[-1])
