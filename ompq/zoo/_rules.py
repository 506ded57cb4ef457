"""The renaming rules of every layout: patterns on whole keys, and what they become.

Each builder gets the names in the network and the names in the checkpoint, and takes its numbers
(of stages, of blocks, of the layers in a block) from them: no network's depth is written down here.
Blocks are matched by their order. Where the numbers differ, what is left keeps its name and is
reported as a misfit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

Rule = tuple[str, str]
Names = Collection[str]
RuleBuilder = Callable[[Names, Names], tuple[Rule, ...]]


def keep_names(own: Names, theirs: Names) -> tuple[Rule, ...]:
    """Build no rule: every key keeps its name."""
    return ()


def _find_blocks(names: Names, pattern: str) -> list[tuple[int, ...]]:
    r"""Find the numbers of all blocks, in order.

    >>> _find_blocks(["blocks.1.0.a", "blocks.0.10.a", "blocks.0.9.b"], r"blocks\.(\d+)\.(\d+)\.")
    [(0, 9), (0, 10), (1, 0)]
    """
    matches = (re.match(pattern, name) for name in names)
    return sorted({tuple(map(int, match.groups())) for match in matches if match is not None})


def _find_torchvision_blocks(own: Names) -> list[int]:
    """Find the inverted residuals among torchvision's `features`, stem and head aside."""
    return [number for (number,) in _find_blocks(own, r"features\.(\d+)\.conv\.")]


def _find_head(own: Names) -> int:
    """Find the last of torchvision's `features`, a 1×1 convolution before the classifier."""
    numbers = _find_blocks(own, r"features\.(\d+)\.")
    return numbers[-1][0] if numbers else 0


def _build_inverted_residual(number: int, parts: tuple[str, ...], source: str) -> list[Rule]:
    """Build the rules of one inverted residual of MobileNetV2.

    torchvision nests all but the last convolution with its batch norm: conv.0.0, conv.0.1, …,
    then conv.N, conv.N+1.

    Args:
        number: Number of the block in torchvision's `features`.
        parts: Their names of each convolution and its batch norm, a space between them, in order.
        source: Pattern of their name of the block, up to its last dot.
    """
    last = len(parts) - 1
    rules: list[Rule] = []
    for index, part in enumerate(parts):
        convolution, norm = part.split()
        ours = (
            (f"conv.{index}", f"conv.{index + 1}")
            if index == last
            else (f"conv.{index}.0", f"conv.{index}.1")
        )
        for theirs, mine in zip((convolution, norm), ours, strict=True):
            pattern = source + re.escape(theirs)
            rules.append((rf"{pattern}\.(\w+)", rf"features.{number}.{mine}.\1"))
    return rules


def build_flat_mobilenet(own: Names, theirs: Names) -> tuple[Rule, ...]:
    """Build the rules of BRECQ's MobileNetV2, whose blocks number all their layers in one row.

    A block is conv, bn, relu6, conv, bn, relu6, conv, bn; without expansion the first three lack.
    """
    rules: list[Rule] = []
    for number in _find_torchvision_blocks(own):
        parts = tuple(
            f"{layer} {layer + 1}"
            for layer in (0, 3, 6)
            if f"features.{number}.conv.{layer}.weight" in theirs
        )
        rules += _build_inverted_residual(number, parts, rf"features\.{number}\.conv\.")
    return tuple(rules)


def build_paper_mobilenet(own: Names, theirs: Names) -> tuple[Rule, ...]:
    """Build the rules of the paper's MobileNetV2."""
    ends = rf"features\.(0|{_find_head(own)})"
    rules: list[Rule] = [
        (rf"{ends}\.conv\.weight", r"features.\1.0.weight"),
        (rf"{ends}\.bn\.(\w+)", r"features.\1.1.\2"),
        (r"classifier\.0\.(\w+)", r"classifier.1.\1"),
    ]
    for number in _find_torchvision_blocks(own):
        parts = tuple(
            f"{part}.conv {part}.bn"
            for part in range(3)
            if f"features.{number}.conv.{part}.conv.weight" in theirs
        )
        rules += _build_inverted_residual(number, parts, rf"features\.{number}\.conv\.")
    return tuple(rules)


def build_timm_mobilenet(own: Names, theirs: Names) -> tuple[Rule, ...]:
    """Build the rules of timm's MobileNetV2, whose blocks without expansion have two parts."""
    head = _find_head(own)
    rules: list[Rule] = [
        (r"conv_stem\.(\w+)", r"features.0.0.\1"),
        (r"bn1\.(\w+)", r"features.0.1.\1"),
        (r"conv_head\.(\w+)", rf"features.{head}.0.\1"),
        (r"bn2\.(\w+)", rf"features.{head}.1.\1"),
        (r"classifier\.(\w+)", r"classifier.1.\1"),
    ]
    blocks = _find_blocks(theirs, r"blocks\.(\d+)\.(\d+)\.")
    for number, (stage, unit) in zip(_find_torchvision_blocks(own), blocks, strict=False):
        expanded = f"blocks.{stage}.{unit}.conv_pwl.weight" in theirs
        parts = (
            ("conv_pw bn1", "conv_dw bn2", "conv_pwl bn3")
            if expanded
            else ("conv_dw bn1", "conv_pw bn2")
        )
        rules += _build_inverted_residual(number, parts, rf"blocks\.{stage}\.{unit}\.")
    return tuple(rules)


def build_pytorchcv_mobilenet(own: Names, theirs: Names) -> tuple[Rule, ...]:
    """Build the rules of pytorchcv's MobileNetV2, whose first block has an expansion or has not."""
    head = _find_head(own)
    rules: list[Rule] = [
        (r"features\.init_block\.conv\.(\w+)", r"features.0.0.\1"),
        (r"features\.init_block\.bn\.(\w+)", r"features.0.1.\1"),
        (r"features\.final_block\.conv\.(\w+)", rf"features.{head}.0.\1"),
        (r"features\.final_block\.bn\.(\w+)", rf"features.{head}.1.\1"),
        (r"output\.(\w+)", r"classifier.1.\1"),
    ]
    blocks = _find_blocks(theirs, r"features\.stage(\d+)\.unit(\d+)\.")
    for number, (stage, unit) in zip(_find_torchvision_blocks(own), blocks, strict=False):
        block = f"features.stage{stage}.unit{unit}."
        parts = tuple(
            f"{name}.conv {name}.bn"
            for name in ("conv1", "conv2", "conv3")
            if f"{block}{name}.conv.weight" in theirs
        )
        rules += _build_inverted_residual(number, parts, re.escape(block))
    return tuple(rules)


def build_paper_resnet(own: Names, theirs: Names) -> tuple[Rule, ...]:
    """Build the rules of the paper's ResNets."""
    return (
        (r"conv1\.conv\.(\w+)", r"conv1.\1"),
        (r"conv1\.bn\.(\w+)", r"bn1.\1"),
        (r"(layer\d+\.\d+)\.conv(\d)\.conv\.(\w+)", r"\1.conv\2.\3"),
        (r"(layer\d+\.\d+)\.conv(\d)\.bn\.(\w+)", r"\1.bn\2.\3"),
        (r"(layer\d+\.\d+)\.downsample\.conv\.(\w+)", r"\1.downsample.0.\2"),
        (r"(layer\d+\.\d+)\.downsample\.bn\.(\w+)", r"\1.downsample.1.\2"),
    )


def build_pytorchcv_resnet(own: Names, theirs: Names) -> tuple[Rule, ...]:
    """Build the rules of pytorchcv's ResNets, which count units from 1."""
    rules: list[Rule] = [
        (r"features\.init_block\.conv\.conv\.(\w+)", r"conv1.\1"),
        (r"features\.init_block\.conv\.bn\.(\w+)", r"bn1.\1"),
        (r"output\.(\w+)", r"fc.\1"),
    ]
    for (unit,) in _find_blocks(theirs, r"features\.stage\d+\.unit(\d+)\."):
        before, after = rf"features\.stage(\d+)\.unit{unit}\.", rf"layer\1.{unit - 1}."
        rules += [
            (before + r"body\.conv(\d)\.conv\.(\w+)", after + r"conv\2.\3"),
            (before + r"body\.conv(\d)\.bn\.(\w+)", after + r"bn\2.\3"),
            (before + r"identity_conv\.conv\.(\w+)", after + r"downsample.0.\2"),
            (before + r"identity_conv\.bn\.(\w+)", after + r"downsample.1.\2"),
        ]
    return tuple(rules)


# Inception v3: unit → torchvision's name, and their branches → torchvision's, unit type by type.
_INCEPTION_A = {
    r"branch1\.conv": "branch1x1",
    r"branch2\.conv_list\.conv(\d)": r"branch5x5_\1",
    r"branch3\.conv_list\.conv(\d)": r"branch3x3dbl_\1",
    r"branch4\.conv": "branch_pool",
}
_INCEPTION_B = {
    r"branch1\.conv_list\.conv1": "branch3x3",
    r"branch2\.conv_list\.conv(\d)": r"branch3x3dbl_\1",
}
_INCEPTION_C = {
    r"branch1\.conv": "branch1x1",
    r"branch2\.conv_list\.conv(\d)": r"branch7x7_\1",
    r"branch3\.conv_list\.conv(\d)": r"branch7x7dbl_\1",
    r"branch4\.conv": "branch_pool",
}
_INCEPTION_D = {
    r"branch1\.conv_list\.conv(\d)": r"branch3x3_\1",
    r"branch2\.conv_list\.conv(\d)": r"branch7x7x3_\1",
}
_INCEPTION_E = {
    r"branch1\.conv": "branch1x1",
    r"branch2\.conv_list\.conv(\d)": r"branch3x3_\1",
    r"branch2\.conv1x3": "branch3x3_2a",
    r"branch2\.conv3x1": "branch3x3_2b",
    r"branch3\.conv_list\.conv(\d)": r"branch3x3dbl_\1",
    r"branch3\.conv1x3": "branch3x3dbl_3a",
    r"branch3\.conv3x1": "branch3x3dbl_3b",
    r"branch4\.conv": "branch_pool",
}
_INCEPTION_UNITS = (
    ("stage1.unit1", "Mixed_5b", _INCEPTION_A),
    ("stage1.unit2", "Mixed_5c", _INCEPTION_A),
    ("stage1.unit3", "Mixed_5d", _INCEPTION_A),
    ("stage2.unit1", "Mixed_6a", _INCEPTION_B),
    ("stage2.unit2", "Mixed_6b", _INCEPTION_C),
    ("stage2.unit3", "Mixed_6c", _INCEPTION_C),
    ("stage2.unit4", "Mixed_6d", _INCEPTION_C),
    ("stage2.unit5", "Mixed_6e", _INCEPTION_C),
    ("stage3.unit1", "Mixed_7a", _INCEPTION_D),
    ("stage3.unit2", "Mixed_7b", _INCEPTION_E),
    ("stage3.unit3", "Mixed_7c", _INCEPTION_E),
)
_INCEPTION_STEM = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")


def build_pytorchcv_inception(own: Names, theirs: Names) -> tuple[Rule, ...]:
    """Build the rules of pytorchcv's Inception v3."""
    rules: list[Rule] = [(r"output\.fc\.(\w+)", r"fc.\1")]
    for number, name in enumerate(_INCEPTION_STEM, 1):
        rules.append((rf"features\.init_block\.conv{number}\.(.+)", rf"Conv2d_{name}.\1"))
    for unit, name, branches in _INCEPTION_UNITS:
        for theirs, ours in branches.items():
            pattern = rf"features\.{re.escape(unit)}\.branches\.{theirs}\.((?:conv|bn)\.\w+)"
            # A branch with a number of its own takes group 1; the rest of the key comes after it.
            group = 2 if "(" in theirs else 1
            rules.append((pattern, rf"{name}.{ours}.\{group}"))
    return tuple(rules)


def build_lite(own: Names, theirs: Names) -> tuple[Rule, ...]:
    """Build the rules of efficientnet-lite-pytorch: its running numbers become stage and unit."""
    rules: list[Rule] = [
        (r"_conv_stem\.(\w+)", r"conv_stem.\1"),
        (r"_bn0\.(\w+)", r"bn1.\1"),
        (r"_conv_head\.(\w+)", r"conv_head.\1"),
        (r"_bn1\.(\w+)", r"bn2.\1"),
        (r"_fc\.(\w+)", r"classifier.\1"),
    ]
    names = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    with_expansion = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    without = ("conv_dw", "bn1", "conv_pw", "bn2")
    blocks = _find_blocks(own, r"blocks\.(\d+)\.(\d+)\.")
    numbers = _find_blocks(theirs, r"_blocks\.(\d+)\.")
    for (number,), (stage, unit) in zip(numbers, blocks, strict=False):
        expanded = f"_blocks.{number}._expand_conv.weight" in theirs
        pairs = (
            zip(names, with_expansion, strict=True)
            if expanded
            else zip(names[2:], without, strict=True)
        )
        for name, ours in pairs:
            rules.append(
                (rf"_blocks\.{number}\.{name}\.(\w+)", rf"blocks.{stage}.{unit}.{ours}.\1")
            )
    return tuple(rules)
