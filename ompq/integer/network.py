"""A network of integers, and the settings of its conversion."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ompq.errors import OmpqError
from ompq.fields import settle_fields
from ompq.graph.exclusions import Exclusions
from ompq.graph.operations import IDENTITIES, LAYOUTS
from ompq.integer.batch_norm import StandaloneBatchNorm
from ompq.integer.fake_quantizers import RangeRule
from ompq.integer.layers import QuantizedLayer
from ompq.integer.operations import IntegerOperation, QuantizedConstant
from ompq.integer.readers import QuantizedSite
from ompq.integer.requantization import Requantizer, ScaleSource

_HANDING_ON = LAYOUTS | IDENTITIES | frozenset("getitem getattr chunk split unbind".split())


@dataclass(frozen=True)
class ConversionSettings:
    """Settings of the conversion to integers.

    Attributes:
        rule: Rule by which ranges become scales.
        bias_bits: Width of the biases' integers, 2 to 32; 0 leaves them in float.
        dyadic: Whether rescaling is by integers and shifts, rather than by real factors.
        learned: Whether step sizes are learned (LSQ), rather than follow ranges.
        quantize_sums: Whether sums, concatenations and averages, and what computes in float behind
            a convolution, read 8 bits: int8 kernels then compute every layer. Else they read what
            the layers' 32-bit sums are.

    Raises:
        OmpqError: `bias_bits` is no width of a bias.
    """

    rule: RangeRule = field(default_factory=RangeRule)
    bias_bits: int = 32
    dyadic: bool = True
    learned: bool = False
    quantize_sums: bool = True

    def __post_init__(self) -> None:
        settle_fields(self)
        if self.bias_bits and not 2 <= self.bias_bits <= 32:
            raise OmpqError(f"`bias_bits` is {self.bias_bits}; it is 2 to 32, or 0 for float")


@dataclass
class IntegerNetwork:
    """A network of quantized layers and requantizers, quantized sums and concatenations included.

    Attributes:
        module: The rewritten network.
        input_shape: Channels × height × width of its images.
        float_operations: Node name → operation, or class of a layer, whose value is in float, or
            what else its integers lack; with an entry the network does not run on integers alone.
        scale_sources: Node name → source of the scale of its value; None for one in float.
        image_maps: Names of the nodes whose values are the images, as they come or normalised.
        left_in_float: Names of the nodes whose values were left in float, for what a check showed.
        exclusions: What of the float network was left as it is.
        sites: Where values are quantized for layers, and for what reads 8 bits; in order.
        quantize_sums: Setting of the conversion.
        product_bits: Node of a product of two values → width that it reads.
        merged: Node that stands for several, which were one operation → those that are gone.
        samples: Images on which integers and simulation are compared; None for random ones.
        notes: Lines that tell what had to be left in float.
    """

    module: GraphModule
    input_shape: tuple[int, int, int]
    float_operations: dict[str, str]
    scale_sources: dict[str, ScaleSource | None]
    image_maps: frozenset[str] = frozenset()
    left_in_float: frozenset[str] = frozenset()
    exclusions: Exclusions = field(default_factory=Exclusions)
    sites: tuple[QuantizedSite, ...] = ()
    quantize_sums: bool = False
    product_bits: dict[str, int] = field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    samples: Tensor | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def runs_on_integers(self) -> bool:
        """Tell whether nothing between images and logits needs floats."""
        return not self.float_operations and self.settings_allow_integers

    @property
    def settings_allow_integers(self) -> bool:
        """Tell whether biases and rescaling are such that integers can follow them."""
        return not any(layer.has_float_bias for layer in self.layers().values()) and all(
            requantizer.dyadic for requantizer in self.requantizers().values()
        )

    def layers(self) -> dict[str, QuantizedLayer]:
        """Return layer name → quantized layer, in execution order."""
        called = collect_called_modules(self.module)
        return {
            name: module for name, module in called.items() if isinstance(module, QuantizedLayer)
        }

    def requantizers(self) -> dict[str, Requantizer]:
        """Return path → requantizer, sums and concatenations included, in execution order."""
        called = collect_called_modules(self.module)
        return {path: module for path, module in called.items() if isinstance(module, Requantizer)}

    def operations(self) -> dict[str, IntegerOperation | QuantizedConstant]:
        """Return path → operation with an integer form, or constant, in execution order."""
        called = collect_called_modules(self.module)
        kinds = IntegerOperation | QuantizedConstant
        return {path: module for path, module in called.items() if isinstance(module, kinds)}

    def enable(self, state: bool) -> None:
        """Switch all quantization on or off."""
        quantizing = QuantizedLayer | Requantizer | IntegerOperation | QuantizedConstant
        for module in collect_called_modules(self.module).values():
            if isinstance(module, quantizing):
                module.enabled = state

    def freeze_norms(self) -> None:
        """Make batch norms keep and use their running statistics from now on."""
        called = list(collect_called_modules(self.module).values())
        while called:
            module = called.pop()
            if isinstance(module, QuantizedLayer | StandaloneBatchNorm):
                module.freeze_norm = True
                continue
            told = _evaluate in module._forward_pre_hooks.values()
            if _is_batch_norm(module) and not told:
                # A norm with code of its own has nothing to be told by but its mode.
                module.register_forward_pre_hook(_evaluate)
            called += module.children()

    def find_clamped_biases(self) -> list[str]:
        """Find the layers whose biases do not fit into their width, and so are clamped."""
        return [name for name, layer in self.layers().items() if layer.clamps_bias()]


def describe_operations(module: GraphModule, operations: Mapping[str, str]) -> list[str]:
    """Describe operations by the module that they belong to: `layer1.0.act (gelu)`.

    Args:
        module: Traced network that the operations' nodes belong to.
        operations: Node name → operation, or class of a layer.

    Returns:
        One description per place and operation, with a number where there are several. What only
        hands values on is left out.
    """
    operations = select_computing(operations)
    nodes = {node.name: node for node in module.graph.nodes}
    places = Counter(
        (locate(nodes[name]) if name in nodes else name, what) for name, what in operations.items()
    )
    return [
        f"{place} ({what})" if count == 1 else f"{place} ({count} × {what})"
        for (place, what), count in places.items()
    ]


def summarise_operations(module: GraphModule, operations: Mapping[str, str]) -> str:
    """Summarise operations by kind in one line: `12 × gelu (first at blocks.0.act), mul (head)`.

    Args:
        module: Traced network that the operations' nodes belong to.
        operations: Node name → operation, or class of a layer.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    places: dict[str, list[str]] = defaultdict(list)
    for name, what in (select_computing(operations) or operations).items():
        places[what].append(locate(nodes[name]) if name in nodes else name)
    return ", ".join(
        f"{what} ({found[0]})"
        if len(found) == 1
        else f"{len(found)} × {what} (first at {found[0]})"
        for what, found in places.items()
    )


def select_computing(operations: Mapping[str, str]) -> dict[str, str]:
    """Select the operations that compute, of all whose values are in float.

    >>> select_computing({"gelu": "gelu", "drop": "dropout", "view": "view"})
    {'gelu': 'gelu'}
    """
    return {name: what for name, what in operations.items() if what not in _HANDING_ON}


def locate(node: Node) -> str:
    """Return the path of the module that a node calls, or in whose code a function is called."""
    if node.op == "call_module":
        return str(node.target)
    # Of torch.fx: the modules whose code called one another, as pairs of path and class.
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path or node.name


def collect_called_modules(module: GraphModule) -> dict[str, nn.Module]:
    """Return path → module for every module that a network calls, in execution order."""
    return {
        str(node.target): module.get_submodule(str(node.target))
        for node in module.graph.nodes
        if node.op == "call_module"
    }


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _evaluate(module: nn.Module, inputs: object) -> None:
    """Put a module into evaluation mode, whatever mode its network is in."""
    module.training = False
