"""What can be told of a traced network without its images: constants, and how values are arranged.

One run of the network on zeros computes what does not depend on images (tables of positions, class
tokens), and tells, by numbered elements, where operations that arrange values take each one from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from ompq.errors import OmpqError
from ompq.export.arrangements import find_places
from ompq.graph.layout import ImageLayout
from ompq.graph.operations import carries_values, find_values, tensor_shape
from ompq.integer.forms import Form, find_form, find_tensors, map_tensors, run_on_copies
from ompq.integer.network import locate


@dataclass(frozen=True)
class Survey:
    """What is known of a network's values.

    Attributes:
        places: Node name → places that the elements of its value are taken from, one int64 tensor
            per tensor, -1 where a zero is put in, as `ompq.export.arrangements` numbers them.
        constants: Node name → value, for one image, of what does not depend on the images' values:
            tensors, sizes and other numbers.
        growing: Names of the nodes among them whose value depends on how many images there are.
    """

    places: dict[str, tuple[Tensor, ...]]
    constants: dict[str, Any]
    growing: set[str]


def survey(module: GraphModule) -> Survey:
    """Find constants and arrangements of a traced network.

    Args:
        module: Network in evaluation mode on the CPU, with recorded shapes.

    Raises:
        OmpqError: A value that the images' number enters, but not their values, is no repetition.
    """
    found, of_two = Survey({}, {}, set()), Survey({}, {}, set())
    placeholders = [None for node in module.graph.nodes if node.op == "placeholder"]
    with torch.inference_mode():
        _Run(module, 1, found).run(*placeholders)
        _Run(module, 2, of_two).run(*placeholders)
    for node in module.graph.nodes:
        if node.name in found.constants:
            one, two = found.constants[node.name], of_two.constants[node.name]
            if not are_equal(one, two):
                found.growing.add(node.name)
                check_repeats(node, one, two)
    return found


def are_equal(one: Any, two: Any) -> bool:
    """Tell whether constants, tensors or others, are the same."""
    tensors, others = find_tensors(one), find_tensors(two)
    if tensors or others:
        return len(tensors) == len(others) and all(map(torch.equal, tensors, others))
    return bool(one == two)


def check_repeats(node: Node, of_one: Any, of_two: Any) -> None:
    """Refuse tensors for two images that are not two times those for one; numbers may differ.

    Args:
        node: Node whose values they are, with its recorded layout.
        of_one: Value for one image.
        of_two: Value for two images.

    Raises:
        OmpqError: They are no repetition.
    """
    if not find_tensors(of_one):
        return
    layout: ImageLayout | None = node.meta.get("layout")
    if isinstance(of_one, Tensor) and layout is not None:
        alone, both = layout.split(of_one)[0], layout.split(of_two)
        if torch.equal(both[0], alone) and torch.equal(both[1], alone):
            return
    raise OmpqError(
        f"{locate(node)} has no form in ONNX: its values depend on how many images there are"
    )


class _Run(Interpreter):
    """Computes constants; what depends on images is zeros.

    Args:
        module: Traced network.
        images: How many images there are, 1 or 2; places are noted for one.
        found: Where constants and places are noted.
    """

    def __init__(self, module: GraphModule, images: int, found: Survey) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.structure, self.images, self.found = module, images, found

    def run_node(self, n: Node) -> Any:
        """Compute a constant, note an arrangement, or hand zeros on."""
        if n.op == "placeholder":
            return self._make_zeros(n)
        computes = n.op.startswith("call_")
        if computes and carries_values(n):
            if self.images == 1 and find_form(n, self.structure) is Form.ARRANGE:
                self._note_places(n)
            if tensor_shape(n) is not None:
                return self._make_zeros(n)
        value = super().run_node(n)
        if computes and not carries_values(n):
            self.found.constants[n.name] = value
        return value

    def _make_zeros(self, n: Node) -> Tensor:
        shape = list(tensor_shape(n) or ())
        layout: ImageLayout | None = n.meta.get("layout")
        if layout is not None:
            shape[layout.dim] *= self.images
        return torch.zeros(shape, dtype=n.meta.get("dtype"))

    def _note_places(self, n: Node) -> None:
        sources = find_values(n)
        if len(sources) != 1:
            return
        (source,) = sources
        kept = self.env[source]

        def run_on(filled: Any) -> Any:
            def run(change: Callable[[Tensor], Tensor]) -> Any:
                self.env[source] = map_tensors(filled, change)
                return super(_Run, self).run_node(n)

            return run_on_copies(run)

        try:
            places = find_places(kept, run_on)
        finally:
            self.env[source] = kept
        if places is not None:
            self.found.places[n.name] = places
