"""Which values are quantized once for all who read them, and not for layers alone.

Sums, concatenations and averages read 8 bits, and so does what computes in float behind a
convolution: a runtime that fuses a convolution with the one quantization behind it would compute it
in float otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from ompq.graph.operations import ADDITIONS, CONCATENATIONS, operation, tensor_shape
from ompq.integer.forms import Form, find_form
from ompq.integer.layers import QuantizedLayer
from ompq.integer.operations import NARROW_BITS, is_narrow
from ompq.integer.readers import LayerReaders
from ompq.integer.requantization import Requantizer, ScaleSource
from ompq.integer.substitution import Substitution

# Width of values that sums, concatenations and averages read.
VALUE_BITS = NARROW_BITS


@dataclass(frozen=True)
class ValueReaders:
    """The readers of a value, as far as a walk in execution order has come.

    Attributes:
        layers: Layers of the network, and what leads to them.
        substitution: Operations with an integer form of their own.
        scale_sources: Source of the scale of each node's value; None for one in float.
        read: Nodes whose values layers read.
    """

    layers: LayerReaders
    substitution: Substitution
    scale_sources: Mapping[Node, ScaleSource | None]
    read: Collection[Node]

    def find_shared_bits(self, node: Node, for_sums: bool) -> int | None:
        """Find the width at which a value is to be quantized once for all who read it.

        Args:
            node: Node whose value it is.
            for_sums: Whether sums and the like read 8 bits, and not products and tables alone.

        Returns:
            The widest that products, tables and the like read; None where the value fits them.
        """
        source = self.scale_sources[node]
        if source is None:
            return None
        others = [user for user in node.users if not self.layers.is_or_leads_to_layer(user)]
        asked = [
            self.substitution.find_read_bits(user, node, self.scale_sources) for user in others
        ]
        widths = [bits for bits in asked if bits is not None]
        if for_sums and not _is_narrow(source):
            for_layers = node in self.read
            needed = any(self._needs_integers(user, node, source, for_layers) for user in others)
            widths += [VALUE_BITS] * needed
        widest = max(widths, default=None)
        return None if widest is None or is_narrow(source, widest) else widest

    def _needs_integers(
        self, user: Node, node: Node, source: ScaleSource, for_layers: bool
    ) -> bool:
        """Tell whether a reader of a value needs 8 bits.

        Args:
            user: Node that reads the value.
            node: Node whose value it is.
            source: Source of the value's scale.
            for_layers: Whether layers read the value too: then what only hands it on may not read
                it beside their quantization.
        """
        if user.op == "output":
            return False
        module = self.layers.module
        left = user.name in self.layers.left_in_float
        form = None if left else find_form(user, module)
        joins = operation(user, module) in ADDITIONS | CONCATENATIONS and not left
        of_convolution = has_channels_second(source, node)
        if joins and form is None:
            if not of_convolution and self.substitution.leads_to_norm(user):
                return False
            others = [other for other in user.all_input_nodes if other in self.scale_sources]
            in_float = any(self.scale_sources[other] is None for other in others)
            return of_convolution or not in_float
        if form in (Form.SUM, Form.AVERAGE):
            return True
        if of_convolution and form is Form.POOL and for_layers:
            return True
        if of_convolution and form is Form.ARRANGE and not flattens_pixels(user, node):
            return True
        if for_layers and form in (Form.KEEP, Form.ARRANGE):
            return any(self._needs_integers(further, user, source, True) for further in user.users)
        return of_convolution and form is None


def _is_narrow(source: ScaleSource) -> bool:
    """Tell whether a value has been quantized to 8 bits or less already."""
    module: object = source.module
    return isinstance(module, Requantizer) and module.fake_quantizer.bits <= VALUE_BITS


def has_channels_second(source: ScaleSource, node: Node) -> bool:
    """Tell whether channels with scales of their own lie along dimension 1 of images.

    Args:
        source: Source of the scale of a value.
        node: Node whose value it is.
    """
    layer: object = source.module
    of_convolution = isinstance(layer, QuantizedLayer) and not isinstance(layer.layer, nn.Linear)
    return of_convolution and not source.flat and len(tensor_shape(node) or ()) == 4


def flattens_pixels(node: Node, source: Node) -> bool:
    """Tell whether images of 1 × 1 become rows of channels, which changes no value's place.

    Args:
        node: Node that arranges a value.
        source: Node whose value it is.
    """
    before, after = tensor_shape(source) or (), tensor_shape(node) or ()
    return len(before) == 4 and before[2:] == (1, 1) and after == before[:2]
