"""How the weight files of other codebases name what torchvision and timm call otherwise.

A layout is a list of renaming rules, and where the other network differs in structure, a change to
ours. Every key must come out as a parameter of the network with its shape: nothing is matched by
position.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

Rename = str | Callable[[re.Match[str]], str | None]
Adapt = Callable[[nn.Module, Mapping[str, Tensor]], None]


def _leave(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The network as it is."""


@dataclass(frozen=True)
class Layout:
    """Renaming `rules` (the first full match wins; None drops the key) and a structural `adapt`.

    `builds` gives, where the weights are for a sibling of the named network, that sibling's name.
    """

    name: str
    rules: tuple[tuple[str, Rename], ...] = ()
    adapt: Adapt = _leave
    builds: str = "{name}"

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict under our names."""
        renamed = {self._rename(key): value for key, value in state.items()}
        return {key: value for key, value in renamed.items() if key is not None}

    def _rename(self, key: str) -> str | None:
        for pattern, rename in self.rules:
            match = re.fullmatch(pattern, key)
            if match:
                return rename(match) if callable(rename) else match.expand(rename)
        return key


def _drop(match: re.Match[str]) -> None:
    """The key has no place in the network."""


def _add_projections(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give residual blocks the projection shortcut that the weights have and the network lacks."""
    for key, weight in state.items():
        path, found, _ = key.partition(".downsample.0.weight")
        block = dict(network.named_modules()).get(path) if found else None
        if isinstance(block, nn.Module) and getattr(block, "downsample", 0) is None:
            outputs, inputs = weight.shape[:2]
            convolution = nn.Conv2d(inputs, outputs, 1, getattr(block, "stride", 1), bias=False)
            block.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _stride_on_first(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Move the stride of bottlenecks from the 3×3 to the first 1×1."""
    for block in network.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        is_bottleneck = hasattr(block, "conv3")
        if is_bottleneck and isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
            first.stride, second.stride = second.stride, first.stride


def _epsilon_of_tensorflow(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3


def _unit(name: str) -> Callable[[re.Match[str]], str]:
    """Stage and unit counted from one become a layer and a block counted from zero."""

    def rename(match: re.Match[str]) -> str:
        stage, unit, *rest = match.groups()
        return f"layer{stage}.{int(unit) - 1}." + name.format(*rest)

    return rename


_AUXILIARY = (r"(?:AuxLogits|aux1|aux2)\..+", _drop)
_PYTORCHCV_UNIT = r"features\.stage(\d+)\.unit(\d+)\."

_PAPER_RESNET = Layout(
    "the paper's base model (ResNet)",
    (
        (r"conv1\.conv\.(.+)", r"conv1.\1"),
        (r"conv1\.bn\.(.+)", r"bn1.\1"),
        (r"(layer\d+\.\d+)\.conv(\d)\.conv\.(.+)", r"\1.conv\2.\3"),
        (r"(layer\d+\.\d+)\.conv(\d)\.bn\.(.+)", r"\1.bn\2.\3"),
        (r"(layer\d+\.\d+)\.downsample\.conv\.(.+)", r"\1.downsample.0.\2"),
        (r"(layer\d+\.\d+)\.downsample\.bn\.(.+)", r"\1.downsample.1.\2"),
    ),
    _add_projections,
)
_PAPER_MOBILENET = Layout(
    "the paper's base model (MobileNetV2)",
    (
        (r"features\.(\d+)\.conv\.weight", r"features.\1.0.weight"),
        (r"features\.(\d+)\.bn\.(.+)", r"features.\1.1.\2"),
        (r"features\.1\.conv\.1\.conv\.(.+)", r"features.1.conv.1.\1"),
        (r"features\.1\.conv\.1\.bn\.(.+)", r"features.1.conv.2.\1"),
        (r"features\.(\d+)\.conv\.2\.conv\.(.+)", r"features.\1.conv.2.\2"),
        (r"features\.(\d+)\.conv\.2\.bn\.(.+)", r"features.\1.conv.3.\2"),
        (r"features\.(\d+)\.conv\.(\d)\.conv\.(.+)", r"features.\1.conv.\2.0.\3"),
        (r"features\.(\d+)\.conv\.(\d)\.bn\.(.+)", r"features.\1.conv.\2.1.\3"),
        (r"classifier\.(?:0\.)?(weight|bias)", r"classifier.1.\1"),
    ),
)
_FLAT_MOBILENET = Layout(
    "BRECQ's MobileNetV2 (flat blocks)",
    (
        (r"features\.1\.conv\.0\.(.+)", r"features.1.conv.0.0.\1"),
        (r"features\.1\.conv\.1\.(.+)", r"features.1.conv.0.1.\1"),
        (r"features\.1\.conv\.3\.(.+)", r"features.1.conv.1.\1"),
        (r"features\.1\.conv\.4\.(.+)", r"features.1.conv.2.\1"),
        (r"features\.(\d+)\.conv\.0\.(.+)", r"features.\1.conv.0.0.\2"),
        (r"features\.(\d+)\.conv\.1\.(.+)", r"features.\1.conv.0.1.\2"),
        (r"features\.(\d+)\.conv\.3\.(.+)", r"features.\1.conv.1.0.\2"),
        (r"features\.(\d+)\.conv\.4\.(.+)", r"features.\1.conv.1.1.\2"),
        (r"features\.(\d+)\.conv\.6\.(.+)", r"features.\1.conv.2.\2"),
        (r"features\.(\d+)\.conv\.7\.(.+)", r"features.\1.conv.3.\2"),
        (r"classifier\.(?:0\.)?(weight|bias)", r"classifier.1.\1"),
    ),
)
_PYTORCHCV_RESNET = Layout(
    "pytorchcv's ResNet",
    (
        (r"features\.init_block\.conv\.conv\.(.+)", r"conv1.\1"),
        (r"features\.init_block\.conv\.bn\.(.+)", r"bn1.\1"),
        (_PYTORCHCV_UNIT + r"body\.conv(\d)\.conv\.(.+)", _unit("conv{}.{}")),
        (_PYTORCHCV_UNIT + r"body\.conv(\d)\.bn\.(.+)", _unit("bn{}.{}")),
        (_PYTORCHCV_UNIT + r"identity_conv\.conv\.(.+)", _unit("downsample.0.{}")),
        (_PYTORCHCV_UNIT + r"identity_conv\.bn\.(.+)", _unit("downsample.1.{}")),
        (r"output\.(weight|bias)", r"fc.\1"),
    ),
    _stride_on_first,
)


def _lite_block(match: re.Match[str]) -> str:
    """Blocks counted through become stage and block; the first has no expansion."""
    block, part, rest = int(match[1]), match[2], match[3]
    starts = (0, 1, 3, 5, 8, 11, 15)
    stage = max(index for index, start in enumerate(starts) if start <= block)
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    names = first if block == 0 else other
    return f"blocks.{stage}.{block - starts[stage]}.{names.get(part, part)}.{rest}"


_LITE = Layout(
    "efficientnet-lite-pytorch's EfficientNet-Lite0",
    (
        (r"_conv_stem\.(.+)", r"conv_stem.\1"),
        (r"_bn0\.(.+)", r"bn1.\1"),
        (r"_blocks\.(\d+)\.(\w+)\.(.+)", _lite_block),
        (r"_conv_head\.(.+)", r"conv_head.\1"),
        (r"_bn1\.(.+)", r"bn2.\1"),
        (r"_fc\.(.+)", r"classifier.\1"),
    ),
    _epsilon_of_tensorflow,
    # TensorFlow pads strided convolutions on one side only, as timm's tf_ networks do.
    builds="timm:tf_{name}",
)

LAYOUTS = (
    Layout("the library's own", (_AUXILIARY,)),
    _PAPER_RESNET,
    _PAPER_MOBILENET,
    _FLAT_MOBILENET,
    _PYTORCHCV_RESNET,
    _LITE,
)
