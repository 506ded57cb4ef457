"""The published bit configurations, one row each, and their lookup by scheme name.

Bits are in the order of the network's groups (see `ompq.graph`): QAT lists leave out the stem
convolution and the classifier, which are pinned at 8 bits; PTQ lists cover every group. All
figures in the rows are the paper's (OMPQ, arXiv:2109.07865, and its repository), not ours.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Published:
    """A published bit configuration of one network.

    Attributes:
        name: Name of the scheme.
        network: Name of the network, lower case, without hyphens and underscores.
        quant_type: `QAT` or `PTQ`, which decides the groups that `bits` covers.
        size_mb: Model size in MB (2²⁰ bytes) that the configuration is published under.
        act_bits: Width of the activations.
        bits: Weight width of each listed group, in execution order.
        top1: Published ImageNet accuracy in per cent; None where none was published.
        miscounted: Layers at which the published BOPs depart from the accounting that they
            otherwise follow, each as (layer, its operations, the published count).
    """

    name: str
    network: str
    quant_type: str
    size_mb: float
    act_bits: int
    bits: tuple[int, ...]
    top1: float | None = None
    miscounted: tuple[tuple[str, int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.quant_type not in ("QAT", "PTQ"):
            raise ValueError(f"{self.name}: quant_type is {self.quant_type!r}, not QAT or PTQ")
        wrong = [width for width in (*self.bits, self.act_bits) if not 2 <= width <= 8]
        if wrong or not self.bits:
            raise ValueError(f"{self.name}: widths {wrong} are not in 2..8, or there are none")


@dataclass(frozen=True)
class Uniform:
    """A scheme with one width in every layer but the stem and the classifier, which get 8 bits.

    Attributes:
        name: Name of the scheme.
        width: Weight width of the layers between stem and classifier.
        act_bits: Width of the activations; None where the name gives none (`uniform4` beside
            `uniform4_a8`).
    """

    name: str
    width: int
    act_bits: int | None = None


def _parse_row(
    name: str,
    network: str,
    quant_type: str,
    size_mb: float,
    act_bits: int,
    bits: str,
    *,
    top1: float | None = None,
) -> Published:
    """Parse a row whose bits are written as runs: `8x22 4x2` is twenty-two times 8, twice 4."""
    runs = [run.partition("x") for run in bits.split()]
    return Published(
        name=name,
        network=network,
        quant_type=quant_type,
        size_mb=size_mb,
        act_bits=act_bits,
        bits=tuple(int(width) for width, _, count in runs for _ in range(int(count or 1))),
        top1=top1,
        miscounted=_MISCOUNTED.get(network, ()),
    )


# The published BOPs of ResNet-50 count the first 1×1 convolution at 112×112 positions, before the
# pooling, and the classifier with 512 inputs instead of 2048.
_MISCOUNTED = {
    "resnet50": (("layer1.0.conv1", 13_848_576, 55_394_304), ("fc", 4_097_000, 1_025_000)),
}


_R18_QAT = "8x4 7 8x4 4 6 8 4x4"
_R50_16 = "8x22 4x2 8 4 8x2 4 8x2 5 8x5 4 8 4x8 8"
_R50_18 = "8x23 4 8x16 4x2 5 4 8x2 4 8"
_R50_21 = "8x40 4x2 8 6 8x4"
_MB2_09 = "4x21 3 4 3x2 4 3x2 4 3x2 4 3 2 4 2x2 4 2x2 4 2x2 4 2x2 4 2x2 4 2x3"

PUBLISHED = {
    row.name: row
    for row in (
        _parse_row("modelsize_6.7_a6_75B", "resnet18", "QAT", 6.7, 6, _R18_QAT, top1=72.08),
        _parse_row("modelsize_6.7_a8_97B", "resnet18", "QAT", 6.7, 8, _R18_QAT, top1=72.30),
        _parse_row("modelsize_16.0_a5_141BOP", "resnet50", "QAT", 16.0, 5, _R50_16, top1=76.20),
        _parse_row("modelsize_18.7_a5_156BOP", "resnet50", "QAT", 18.7, 5, _R50_18, top1=76.28),
        _parse_row("modelsize_21.2_a7_226BOP", "resnet50", "QAT", 21.2, 7, _R50_21),
        _parse_row("resnet18_3.0", "resnet18", "PTQ", 3.0, 8, "4 3 4x5 3 4x2 2x8"),
        _parse_row("resnet18_3.5", "resnet18", "PTQ", 3.5, 8, "4 3x2 4x7 3x2 4 3 2x3 3"),
        _parse_row("resnet18_4.0", "resnet18", "PTQ", 4.0, 8, "4x7 3x5 4 3 2 3x3", top1=69.34),
        _parse_row("resnet18_4.5", "resnet18", "PTQ", 4.5, 8, "4 3x2 4x7 3x2 4x2 3x4", top1=69.73),
        _parse_row("resnet18_5.0", "resnet18", "PTQ", 5.0, 8, "4 3x3 4x3 3 4 3 4 3 4 3x2 4x3"),
        _parse_row("resnet18_5.5", "resnet18", "PTQ", 5.5, 4, "4x10 3 4x7", top1=69.38),
        _parse_row("mobilenetv2_1.5", "mobilenetv2", "PTQ", 1.5, 8, "4x52 3", top1=71.27),
        _parse_row("mobilenetv2_1.3", "mobilenetv2", "PTQ", 1.3, 8, "4x50 3x2 2", top1=69.51),
        _parse_row("mobilenetv2_1.1", "mobilenetv2", "PTQ", 1.1, 8, "4x41 3x2 4 3x2 4 3x2 4 2x3"),
        _parse_row("mobilenetv2_0.9", "mobilenetv2", "PTQ", 0.9, 8, _MB2_09),
    )
}

UNIFORM = {f"uniform{width}": Uniform(f"uniform{width}", width) for width in range(2, 9)}
_UNIFORM_WITH_ACTIVATIONS = re.compile(r"(uniform[2-8])_a([2-8])")


def lookup(
    scheme: str, network: str | None = None, quant_type: str | None = None
) -> Published | Uniform:
    """Return the configuration called `scheme`.

    Args:
        scheme: Name of a published scheme, `uniformN`, or `uniformN_aM` with M bits of activation.
        network: Name of the network that a published scheme must be for
            (`torchvision:mobilenet_v2` counts as `mobilenetv2`); None accepts any network.
        quant_type: Quantization type that a published scheme must be for; None accepts either.

    Raises:
        LookupError: no configuration has that name (those that exist are named, the closest
            first), or it is for another network or quantization type.

    >>> lookup("uniform4_a8")
    Uniform(name='uniform4_a8', width=4, act_bits=8)
    >>> lookup("resnet18_5.5").bits
    (4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 3, 4, 4, 4, 4, 4, 4, 4)
    """
    if match := _UNIFORM_WITH_ACTIVATIONS.fullmatch(scheme):
        return replace(UNIFORM[match[1]], name=scheme, act_bits=int(match[2]))
    schemes: dict[str, Published | Uniform] = {**PUBLISHED, **UNIFORM}
    if scheme not in schemes:
        known = difflib.get_close_matches(scheme, schemes, n=len(schemes), cutoff=0.0)
        raise LookupError(f"no configuration is called {scheme!r}; there are {', '.join(known)}")
    found = schemes[scheme]
    if isinstance(found, Published):
        _check_meant_for(found, network, quant_type)
    return found


def published_for(network: str, size_mb: float, quant_type: str = "PTQ") -> Published:
    """Return the configuration that is published for a network and a size; of several, the first.

    Args:
        network: Name of the network, with or without the prefix of its library.
        size_mb: Model size in MB, as it was published.
        quant_type: `QAT` or `PTQ`.

    Raises:
        LookupError: nothing is published for that network and size; the message names the sizes
            that are.

    >>> published_for("torchvision:mobilenet_v2", 1.5).name
    'mobilenetv2_1.5'
    """
    wanted = (_canonicalize(network), quant_type)
    rows = [row for row in PUBLISHED.values() if (row.network, row.quant_type) == wanted]
    for row in rows:
        if row.size_mb == size_mb:
            return row
    sizes = ", ".join(str(row.size_mb) for row in rows) or "none"
    raise LookupError(
        f"no {quant_type} configuration of {network} with {size_mb} MB is published; sizes: {sizes}"
    )


def _check_meant_for(row: Published, network: str | None, quant_type: str | None) -> None:
    if network is not None and _canonicalize(network) != row.network:
        raise LookupError(f"{row.name} is for {row.network} ({row.quant_type}), not for {network}")
    if quant_type is not None and quant_type != row.quant_type:
        raise LookupError(
            f"{row.name} is for {row.quant_type}; it has no widths for {quant_type} of "
            f"{row.network}"
        )


def _canonicalize(network: str) -> str:
    """Write `torchvision:mobilenet_v2` and `MobileNetV2` as `mobilenetv2`."""
    return network.rpartition(":")[2].lower().replace("_", "").replace("-", "")
