"""The renaming rules of every layout: patterns on whole keys, and what they become."""

from __future__ import annotations

import re

Rule = tuple[str, str]


def _count_units(first: int, depths: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Count the units of all stages: stage and unit from `first`, running number from 0."""
    pairs = [(s, u) for s, depth in enumerate(depths, first) for u in range(first, first + depth)]
    return [(stage, unit, number) for number, (stage, unit) in enumerate(pairs)]


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


def build_flat_mobilenet() -> tuple[Rule, ...]:
    """Build the rules of BRECQ's MobileNetV2, whose blocks number all their layers in one row.

    A block is conv, bn, relu6, conv, bn, relu6, conv, bn.
    """
    rules = _build_inverted_residual(1, ("0 1", "3 4"), r"features\.1\.conv\.")
    for number in range(2, 18):
        rules += _build_inverted_residual(
            number, ("0 1", "3 4", "6 7"), rf"features\.{number}\.conv\."
        )
    return tuple(rules)


def build_paper_mobilenet() -> tuple[Rule, ...]:
    """Build the rules of the paper's MobileNetV2."""
    rules: list[Rule] = [
        (r"features\.(0|18)\.conv\.weight", r"features.\1.0.weight"),
        (r"features\.(0|18)\.bn\.(\w+)", r"features.\1.1.\2"),
        (r"classifier\.0\.(\w+)", r"classifier.1.\1"),
    ]
    parts = ("0.conv 0.bn", "1.conv 1.bn", "2.conv 2.bn")
    for number in range(1, 18):
        used = parts[: 2 if number == 1 else 3]
        rules += _build_inverted_residual(number, used, rf"features\.{number}\.conv\.")
    return tuple(rules)


def build_timm_mobilenet() -> tuple[Rule, ...]:
    """Build the rules of timm's MobileNetV2, whose first block has no expansion."""
    rules: list[Rule] = [
        (r"conv_stem\.(\w+)", r"features.0.0.\1"),
        (r"bn1\.(\w+)", r"features.0.1.\1"),
        (r"conv_head\.(\w+)", r"features.18.0.\1"),
        (r"bn2\.(\w+)", r"features.18.1.\1"),
        (r"classifier\.(\w+)", r"classifier.1.\1"),
    ]
    parts = ("conv_pw bn1", "conv_dw bn2", "conv_pwl bn3")
    for stage, unit, number in _count_units(0, (1, 2, 3, 4, 3, 3, 1)):
        used = ("conv_dw bn1", "conv_pw bn2") if number == 0 else parts
        rules += _build_inverted_residual(number + 1, used, rf"blocks\.{stage}\.{unit}\.")
    return tuple(rules)


def build_pytorchcv_mobilenet(first: tuple[str, ...]) -> tuple[Rule, ...]:
    """Build the rules of pytorchcv's MobileNetV2.

    Args:
        first: Names of the convolutions in the first block, which has an expansion or has not.
    """
    rules: list[Rule] = [
        (r"features\.init_block\.conv\.(\w+)", r"features.0.0.\1"),
        (r"features\.init_block\.bn\.(\w+)", r"features.0.1.\1"),
        (r"features\.final_block\.conv\.(\w+)", r"features.18.0.\1"),
        (r"features\.final_block\.bn\.(\w+)", r"features.18.1.\1"),
        (r"output\.(\w+)", r"classifier.1.\1"),
    ]
    for stage, unit, number in _count_units(1, (1, 2, 3, 7, 4)):
        names = first if number == 0 else ("conv1", "conv2", "conv3")
        parts = tuple(f"{name}.conv {name}.bn" for name in names)
        rules += _build_inverted_residual(
            number + 1, parts, rf"features\.stage{stage}\.unit{unit}\."
        )
    return tuple(rules)


PAPER_RESNET: tuple[Rule, ...] = (
    (r"conv1\.conv\.(\w+)", r"conv1.\1"),
    (r"conv1\.bn\.(\w+)", r"bn1.\1"),
    (r"(layer\d\.\d+)\.conv(\d)\.conv\.(\w+)", r"\1.conv\2.\3"),
    (r"(layer\d\.\d+)\.conv(\d)\.bn\.(\w+)", r"\1.bn\2.\3"),
    (r"(layer\d\.\d+)\.downsample\.conv\.(\w+)", r"\1.downsample.0.\2"),
    (r"(layer\d\.\d+)\.downsample\.bn\.(\w+)", r"\1.downsample.1.\2"),
)


def build_pytorchcv_resnet() -> tuple[Rule, ...]:
    """Build the rules of pytorchcv's ResNets, up to 39 units a stage (ResNet-152 has 36)."""
    rules: list[Rule] = [
        (r"features\.init_block\.conv\.conv\.(\w+)", r"conv1.\1"),
        (r"features\.init_block\.conv\.bn\.(\w+)", r"bn1.\1"),
        (r"output\.(\w+)", r"fc.\1"),
    ]
    for unit in range(1, 40):
        theirs, ours = rf"features\.stage(\d)\.unit{unit}\.", rf"layer\1.{unit - 1}."
        rules += [
            (theirs + r"body\.conv(\d)\.conv\.(\w+)", ours + r"conv\2.\3"),
            (theirs + r"body\.conv(\d)\.bn\.(\w+)", ours + r"bn\2.\3"),
            (theirs + r"identity_conv\.conv\.(\w+)", ours + r"downsample.0.\2"),
            (theirs + r"identity_conv\.bn\.(\w+)", ours + r"downsample.1.\2"),
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


def build_pytorchcv_inception() -> tuple[Rule, ...]:
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


def build_lite0() -> tuple[Rule, ...]:
    """Build the rules of efficientnet-lite-pytorch: its running numbers become stage and unit.

    The first block has no expansion.
    """
    rules: list[Rule] = [
        (r"_conv_stem\.(\w+)", r"conv_stem.\1"),
        (r"_bn0\.(\w+)", r"bn1.\1"),
        (r"_conv_head\.(\w+)", r"conv_head.\1"),
        (r"_bn1\.(\w+)", r"bn2.\1"),
        (r"_fc\.(\w+)", r"classifier.\1"),
    ]
    theirs = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    ours = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    shallow = ("conv_dw", "bn1", "conv_pw", "bn2")
    for stage, unit, number in _count_units(0, (1, 2, 2, 3, 3, 4, 1)):
        pairs = (
            zip(theirs[2:], shallow, strict=True) if number == 0 else zip(theirs, ours, strict=True)
        )
        for their, our in pairs:
            rules.append(
                (rf"_blocks\.{number}\.{their}\.(\w+)", rf"blocks.{stage}.{unit}.{our}.\1")
            )
    return tuple(rules)
