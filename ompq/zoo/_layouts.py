"""How the weight files of other codebases name what torchvision and timm call otherwise.

A layout is a builder of renaming rules and, where that codebase's network differs in structure,
changes to ours that make it compute the same. Every key must come out as a parameter of the network
with its shape: nothing is matched by position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ompq.zoo import _adapt, _rules
from ompq.zoo._adapt import Adapt
from ompq.zoo._rules import Rule, RuleBuilder


@dataclass(frozen=True)
class Layout:
    """A layout of weight files: the names and the structure of one codebase's networks.

    Attributes:
        name: The layout in words, for messages.
        marker: Pattern of a key that only this layout has; the layout is tried where a key matches.
        rules: Function of the names in the network and of those in the weights that returns pairs
            of pattern and replacement for whole keys; the first that matches renames a key, and a
            key that none matches keeps its name.
        adapts: Functions that change the network, called in order; each returns in words what it
            changed, or an empty text.
        sibling: Pattern of names of networks, and name of the network that is built in their place
            because it computes what the codebase's network does.
    """

    name: str
    marker: str = ""
    rules: RuleBuilder = _rules.keep_names
    adapts: tuple[Adapt, ...] = ()
    sibling: Rule | None = None

    def recognises(self, state: Iterable[str]) -> bool:
        """Tell whether some key of a state dict is of this layout."""
        pattern = re.compile(self.marker)
        return any(pattern.match(key) for key in state)

    def find_sibling(self, name: str) -> str | None:
        """Return the name of the network to build in the place of one; None to build that one.

        >>> LAYOUTS[-1].find_sibling("efficientnet_lite1")
        'timm:tf_efficientnet_lite1'
        """
        if self.sibling is None:
            return None
        pattern, replacement = self.sibling
        return _rename(name, [(re.compile(pattern), replacement)])

    def translate(self, state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
        """Return the state dict under our names; keys that would collide keep their own.

        Args:
            state: Weights under the codebase's names.
            own: Names in the network.

        >>> list(LAYOUTS[1].translate({"conv1.bn.bias": Tensor(), "fc.bias": Tensor()}, []))
        ['bn1.bias', 'fc.bias']
        """
        rules = [(re.compile(p), new) for p, new in self.rules(set(own), state.keys())]
        translated: dict[str, Tensor] = {}
        for key, value in state.items():
            new = _rename(key, rules) or key
            translated[key if new in translated else new] = value
        return translated


def _rename(key: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, replacement in rules:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(replacement)
    return None


LAYOUTS = (
    Layout("the network's own names", adapts=(_adapt.add_projections,)),
    Layout(
        "the names of the paper's ResNets",
        marker=r"conv1\.conv\.weight",
        rules=_rules.build_paper_resnet,
        adapts=(_adapt.add_projections,),
    ),
    Layout(
        "the names of the paper's MobileNetV2",
        marker=r"features\.\d+\.conv\.0\.conv\.weight",
        rules=_rules.build_paper_mobilenet,
    ),
    Layout(
        "the names of BRECQ's MobileNetV2",
        marker=r"features\.\d+\.conv\.[37]\.running_mean|features\.1\.conv\.0\.weight",
        rules=_rules.build_flat_mobilenet,
    ),
    Layout(
        "timm's names of MobileNetV2",
        marker=r"blocks\.0\.0\.conv_dw\.weight",
        rules=_rules.build_timm_mobilenet,
    ),
    Layout(
        "pytorchcv's names of a ResNet",
        marker=r"features\.stage\d\.unit\d+\.body\.conv1\.conv\.weight",
        rules=_rules.build_pytorchcv_resnet,
        adapts=(_adapt.move_stride_to_first,),
    ),
    Layout(
        "pytorchcv's names of MobileNetV2",
        marker=r"features\.stage1\.unit1\.conv1\.conv\.weight",
        rules=_rules.build_pytorchcv_mobilenet,
        adapts=(_adapt.expand_first_block, _adapt.flatten_classifier),
    ),
    Layout(
        "pytorchcv's names of MobileNetV2 (b)",
        marker=r"features\.stage1\.unit1\.conv2\.conv\.weight",
        rules=_rules.build_pytorchcv_mobilenet,
        adapts=(_adapt.flatten_classifier,),
    ),
    Layout(
        "pytorchcv's names of Inception v3",
        marker=r"features\.stage\d\.unit\d\.branches\.",
        rules=_rules.build_pytorchcv_inception,
    ),
    Layout(
        "efficientnet-lite-pytorch's names",
        marker=r"_blocks\.0\._depthwise_conv\.weight",
        rules=_rules.build_lite,
        # TensorFlow pads strided convolutions on one side only, with a batch norm epsilon of
        # 0.001; timm's tf_ networks compute that.
        sibling=(r"(efficientnet_lite\d)", r"timm:tf_\1"),
    ),
)
