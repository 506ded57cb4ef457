"""The view of a network that every stage uses: layers, tied groups, features, blocks."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from torch import nn
from torch.fx import GraphModule, Node

from ompq.errors import OmpqError
from ompq.graph.blocks import Block, find_blocks
from ompq.graph.features import find_feature_tap
from ompq.graph.operations import (
    ARITHMETIC,
    BATCH_NORMS,
    IDENTITIES,
    LAYOUTS,
    NORMS,
    PARAMETER_PLUMBING,
    find_tensor_users,
    get_layer,
    is_quantizable,
    operation,
    tensor_shape,
)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer that the network calls.

    Attributes:
        name: Path of its module.
        kind: `conv` or `linear`.
        nodes: Nodes that call it, in execution order.
        batch_norm: Path of the batch norm that reads this layer alone; None where there is none.
        weight_shape: Shape of its weight.
        output_shape: Shape of its output at the last call, without the dimension of the images.
        weights: Number of elements of its weight.
        params: Number of parameters, by the accounting of the published results (`ompq.cost`).
        macs: Multiply-accumulates for one image.
        ops: Operations for one image, by the accounting of the published results (`ompq.cost`).
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    batch_norm: str | None
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    weights: int
    params: int
    macs: int
    ops: int


@dataclass(frozen=True)
class Group:
    """Layers that share one bit width because their outputs are added to one feature.

    Attributes:
        layers: Names of the layers; the first, the last layer of the deepest branch, names the
            group.
        tap: Node whose value is the group's feature.
        role: `stem`, `body` or `classifier`.
        params: Number of parameters of all its layers.
        ops: Operations of all its layers for one image.
    """

    layers: tuple[str, ...]
    tap: str
    role: str
    params: int
    ops: int

    @property
    def name(self) -> str:
        """Return the name of the layer that stands for the group."""
        return self.layers[0]


@dataclass(frozen=True)
class NetworkGraph:
    """A traced network with everything that the stages ask of its structure.

    Attributes:
        module: Traced network; it computes, in evaluation mode, what the network computes.
        input_shape: Channels, height and width of one image.
        layers: Quantizable layers by name, in execution order.
        groups: Groups of these layers, in execution order.
        float_layers: Why a module or parameter with weights is not quantized, by its name.
    """

    module: GraphModule
    input_shape: tuple[int, int, int]
    layers: dict[str, Layer]
    groups: tuple[Group, ...]
    float_layers: dict[str, str]

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks, in execution order; every call of a layer is in exactly one."""
        return find_blocks(self.module, [n for layer in self.layers.values() for n in layer.nodes])

    @property
    def num_outputs(self) -> int:
        """Return the size of the last dimension of the output: the number of classes."""
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        shape = tensor_shape(output.all_input_nodes[0])
        return shape[-1] if shape else 0

    def layer_module(self, name: str) -> nn.Conv2d | nn.Linear:
        """Return the module of the layer called `name`."""
        return get_layer(self.module, name)

    def with_module(self, module: GraphModule) -> NetworkGraph:
        """Return the view of a rewritten network that has these layers and keeps their costs.

        Args:
            module: Rewritten network, with recorded shapes.
        """
        # Parameters are counted with their batch norm, which folding removes.
        view = analyse(module, self.input_shape)
        layers = {
            name: replace(layer, params=self.layers[name].params)
            for name, layer in view.layers.items()
        }
        params = {group.name: group.params for group in self.groups}
        groups = tuple(replace(group, params=params[group.name]) for group in view.groups)
        return replace(view, layers=layers, groups=groups)


def copy_traced(module: GraphModule) -> GraphModule:
    """Return a copy of a traced network that shares nothing with it, graph and name included."""
    return GraphModule(copy.deepcopy(module), copy.deepcopy(module.graph), module._get_name())


def analyse(traced: GraphModule, input_shape: tuple[int, int, int]) -> NetworkGraph:
    """Find the layers of a traced network, their groups, and what stays in float.

    Args:
        traced: Traced network with recorded shapes.
        input_shape: Channels, height and width of one image.

    Raises:
        OmpqError: there is nothing to quantize.
    """
    calls = _find_layer_calls(traced)
    if not calls:
        raise OmpqError("the network calls no Conv2d or Linear layer: there is nothing to quantize")
    layers = {name: _describe(traced, name, nodes) for name, nodes in calls.items()}
    groups = _form_groups(traced, layers)
    return NetworkGraph(traced, input_shape, layers, groups, _find_float_layers(traced, layers))


def _find_layer_calls(traced: GraphModule) -> dict[str, list[Node]]:
    calls: dict[str, list[Node]] = defaultdict(list)
    for node in traced.graph.nodes:
        if node.op == "call_module" and is_quantizable(traced.get_submodule(node.target)):
            calls[node.target].append(node)
    return dict(calls)


def _describe(traced: GraphModule, name: str, nodes: list[Node]) -> Layer:
    module = get_layer(traced, name)
    weight = module.weight
    bias = 0 if module.bias is None else module.bias.numel()
    output_shape = tensor_shape(nodes[-1]) or ()
    outputs, weights = weight.shape[0], weight.numel()
    # Of all calls: a layer that is called twice costs twice.
    positions = sum(prod(tensor_shape(node) or ()) // outputs for node in nodes)
    batch_norm = _find_batch_norm(traced, nodes)
    is_conv = isinstance(module, nn.Conv2d)
    per_position = weights + 5 * outputs if is_conv else 2 * weights + outputs
    return Layer(
        name=name,
        kind="conv" if is_conv else "linear",
        nodes=tuple(node.name for node in nodes),
        batch_norm=batch_norm,
        weight_shape=tuple(weight.shape),
        output_shape=output_shape[1:],
        weights=weights,
        params=weights + (2 * outputs if batch_norm else bias),
        macs=weights * positions,
        ops=per_position * positions,
    )


def _find_batch_norm(traced: GraphModule, nodes: list[Node]) -> str | None:
    """Find the path of the batch norm that reads one layer and nothing else.

    A batch norm without running statistics does not count: it cannot become part of the layer.

    Args:
        traced: Traced network.
        nodes: Nodes that call the layer.
    """
    users = find_tensor_users(nodes[0])
    if len(nodes) > 1 or len(users) != 1 or users[0].op != "call_module":
        return None
    norm = users[0]
    calls = [n for n in traced.graph.nodes if n.op == "call_module" and n.target == norm.target]
    if operation(norm, traced) not in BATCH_NORMS or len(calls) > 1:
        return None
    target = str(norm.target)
    return None if traced.get_submodule(target).running_var is None else target


def _form_groups(traced: GraphModule, layers: dict[str, Layer]) -> tuple[Group, ...]:
    """Group layers that share a feature: a projection shortcut joins its block's last layer."""
    nodes = {node.name: node for node in traced.graph.nodes}
    order = {name: position for position, name in enumerate(nodes)}
    behind_images = _find_nodes_behind_images(traced)
    depth = _measure_layer_depth(traced, layers)
    feeding = _find_nodes_before_layers(traced, layers)
    by_tap: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers.values():
        feature = find_feature_tap(nodes[layer.nodes[-1]], traced, behind_images)
        by_tap[feature.name].append(layer)

    # By depth first: a shortcut may be called before or after the branch that it is added to.
    def rank(layer: Layer) -> tuple[int, int]:
        return depth[layer.nodes[-1]], order[layer.nodes[-1]]

    groups = []
    for tap, members in by_tap.items():
        members.sort(key=rank, reverse=True)
        head = members[0].nodes[-1]
        is_last = not any(layer.nodes[-1] in feeding for layer in members)
        role = "stem" if depth[head] == 1 else "classifier" if is_last else "body"
        names = tuple(layer.name for layer in members)
        params, ops = sum(m.params for m in members), sum(m.ops for m in members)
        groups.append((order[head], Group(names, tap, role, params, ops)))
    return tuple(group for _, group in sorted(groups, key=lambda pair: pair[0]))


def _find_nodes_behind_images(traced: GraphModule) -> set[Node]:
    """Find the nodes whose values depend on the images."""
    behind: set[Node] = set()
    for node in traced.graph.nodes:
        if node.op == "placeholder" or any(source in behind for source in node.all_input_nodes):
            behind.add(node)
    return behind


def _measure_layer_depth(traced: GraphModule, layers: dict[str, Layer]) -> dict[str, int]:
    """Count for each node the most layers on a path from the images up to and with the node."""
    calls = {name for layer in layers.values() for name in layer.nodes}
    depth: dict[str, int] = {}
    for node in traced.graph.nodes:
        before = max((depth[source.name] for source in node.all_input_nodes), default=0)
        depth[node.name] = before + (node.name in calls)
    return depth


def _find_nodes_before_layers(traced: GraphModule, layers: dict[str, Layer]) -> set[str]:
    """Find the names of the nodes from which a later layer can be reached."""
    calls = {name for layer in layers.values() for name in layer.nodes}
    before: set[str] = set()
    for node in reversed(traced.graph.nodes):
        if any(user.name in calls or user.name in before for user in node.users):
            before.add(node.name)
    return before


def _find_float_layers(traced: GraphModule, layers: dict[str, Layer]) -> dict[str, str]:
    """Find what multiplies with weights and is not quantized; give the reason by its name."""
    left = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target not in layers:
            module = traced.get_submodule(node.target)
            if any(parameter.dim() > 1 for parameter in module.parameters()):
                left[str(node.target)] = _explain(module)
        elif node.op == "get_attr":
            user = _find_multiplying_user(node, traced)
            if user is not None:
                owner = str(node.target).rpartition(".")[0] or str(node.target)
                left[owner] = f"its weight goes into the function {operation(user, traced)}"
    return left


def _explain(module: nn.Module) -> str:
    """Say why a module with weights is not quantized."""
    name = type(module).__name__
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return f"{name} is not quantized"
    if "weight" not in module._parameters:
        return f"{name} computes its weight anew at every call"
    return f"{name} computes otherwise than its base class"


def _find_multiplying_user(parameter: Node, traced: GraphModule) -> Node | None:
    """Find the first function that does more with a matrix than scale, shift or shape it."""
    if len(tensor_shape(parameter) or ()) < 2:
        return None
    harmless = ARITHMETIC | LAYOUTS | IDENTITIES | NORMS | PARAMETER_PLUMBING
    return next((user for user in parameter.users if operation(user, traced) not in harmless), None)
