"""Changes that make a network compute what the network of a checkpoint computes.

Each function takes the network and the translated weights, changes both in place where the weights
call for it, and returns in words what it changed, or an empty text.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

State = MutableMapping[str, Tensor]
Adapt = Callable[[nn.Module, State], str]


def add_projections(network: nn.Module, state: State) -> str:
    """Give residual blocks the projection shortcut that the weights have and the network lacks."""
    modules = dict(network.named_modules())
    added = []
    for key, weight in state.items():
        path, found, _ = key.partition(".downsample.0.weight")
        block = modules.get(path) if found else None
        # Only blocks that have the attribute and leave it empty can take a projection.
        if block is None or weight.ndim != 4 or getattr(block, "downsample", block) is not None:
            continue
        outputs, inputs = weight.shape[:2]
        stride = getattr(block, "stride", 1)
        block.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )
        added.append(path)
    return f"projection shortcut in {', '.join(added)}" if added else ""


def move_stride_to_first(network: nn.Module, state: State) -> str:
    """Move the stride of bottlenecks from the 3×3 convolution to the first 1×1."""
    moved = False
    for block in network.modules():
        layers = [getattr(block, name, None) for name in ("conv1", "conv2", "conv3")]
        convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        if len(convolutions) < 3:
            continue
        first, second, _ = convolutions
        if first.kernel_size == (1, 1) and max(second.stride) > 1:
            first.stride, second.stride = second.stride, first.stride
            moved = True
    return "strides on the first 1×1" if moved else ""


def expand_first_block(network: nn.Module, state: State) -> str:
    """Give MobileNetV2's first block the 1×1 expansion that the weights have."""
    weight = state.get("features.1.conv.0.0.weight")
    block = dict(network.named_modules()).get("features.1")
    branch = getattr(block, "conv", None)
    if weight is None or block is None or not isinstance(branch, nn.Sequential):
        return ""
    outputs, inputs = weight.shape[:2]
    expansion = Conv2dNormActivation(inputs, outputs, 1, activation_layer=nn.ReLU6)
    block.conv = nn.Sequential(expansion, *branch)
    return "expansion in the first block"


def flatten_classifier(network: nn.Module, state: State) -> str:
    """Make a 1×1 convolution without bias, used as classifier, a linear layer with bias zero."""
    key = "classifier.1.weight"
    weight = state.get(key)
    if weight is None or weight.ndim != 4 or tuple(weight.shape[2:]) != (1, 1):
        return ""
    state[key] = weight.flatten(1)
    if "classifier.1.bias" in state:
        return "1×1 classifier as a linear layer"
    state["classifier.1.bias"] = weight.new_zeros(weight.shape[0])
    return "1×1 classifier as a linear layer, its bias zero"
