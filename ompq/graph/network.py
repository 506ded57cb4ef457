"""The one view of a network that every stage uses: layers, tied groups, feature taps, blocks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from torch import nn
from torch.fx import GraphModule, Node

from ompq.errors import OmpqError
from ompq.graph.blocks import Block, find_blocks
from ompq.graph.operations import (
    ARITHMETIC,
    BATCH_NORMS,
    IDENTITIES,
    LAYOUTS,
    NORMS,
    PARAMETER_PLUMBING,
    layer_of,
    operation,
    quantizable,
    tensor_shape,
    tensor_users,
)
from ompq.graph.taps import feature_tap


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer that the network calls.

    `params` and `ops` follow the accounting of the published results (see `ompq.cost`);
    `macs` is the plain number of multiply-accumulates for one image.
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

    `layers` begins with the one that names the group: the last layer of the deepest branch. `tap`
    is the graph node whose value is the group's feature. `role` is stem, body or classifier.
    """

    layers: tuple[str, ...]
    tap: str
    role: str
    params: int
    ops: int

    @property
    def name(self) -> str:
        """Name of the layer that stands for the group."""
        return self.layers[0]


@dataclass(frozen=True)
class NetworkGraph:
    """A traced network with everything the stages ask of its structure.

    `layers` and `groups` are in execution order. `float_layers` tells, by name, what holds weights
    that the toolkit does not quantize.
    """

    module: GraphModule
    input_shape: tuple[int, int, int]
    layers: dict[str, Layer]
    groups: tuple[Group, ...]
    float_layers: dict[str, str]

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Single-entry single-exit parts, in execution order; every call of a layer is in one."""
        return find_blocks(self.module, [n for layer in self.layers.values() for n in layer.nodes])

    @property
    def num_outputs(self) -> int:
        """Size of the last dimension of what the network gives: its number of classes."""
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        shape = tensor_shape(output.all_input_nodes[0])
        return shape[-1] if shape else 0

    def layer_module(self, name: str) -> nn.Conv2d | nn.Linear:
        """The module of the layer called `name`."""
        return layer_of(self.module, name)

    def with_module(self, module: GraphModule) -> NetworkGraph:
        """The view of a rewritten network with the same layers; costs stay those of this one."""
        view = analyse(module, self.input_shape)
        layers = {
            name: replace(layer, params=self.layers[name].params)
            for name, layer in view.layers.items()
        }
        params = {group.name: group.params for group in self.groups}
        groups = tuple(replace(group, params=params[group.name]) for group in view.groups)
        return replace(view, layers=layers, groups=groups)


def analyse(traced: GraphModule, input_shape: tuple[int, int, int]) -> NetworkGraph:
    """Find layers, groups and float leftovers of a traced network with recorded shapes.

    Raises:
        OmpqError: there is nothing to quantize.
    """
    calls = _layer_calls(traced)
    if not calls:
        raise OmpqError("the network calls no Conv2d or Linear layer: there is nothing to quantize")
    layers = {name: _describe(traced, name, nodes) for name, nodes in calls.items()}
    groups = _tied_groups(traced, layers)
    return NetworkGraph(traced, input_shape, layers, groups, _left_in_float(traced, layers))


def _layer_calls(traced: GraphModule) -> dict[str, list[Node]]:
    calls: dict[str, list[Node]] = defaultdict(list)
    for node in traced.graph.nodes:
        if node.op == "call_module" and quantizable(traced.get_submodule(node.target)):
            calls[node.target].append(node)
    return dict(calls)


def _describe(traced: GraphModule, name: str, nodes: list[Node]) -> Layer:
    module = layer_of(traced, name)
    weight = module.weight
    bias = 0 if module.bias is None else module.bias.numel()
    output_shape = tensor_shape(nodes[-1]) or ()
    outputs, weights = weight.shape[0], weight.numel()
    positions = sum(prod(tensor_shape(node) or ()) // outputs for node in nodes)
    batch_norm = _following_batch_norm(traced, nodes)
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


def _following_batch_norm(traced: GraphModule, nodes: list[Node]) -> str | None:
    """Path of the batch norm that reads this layer alone, if it has one of its own.

    One without running statistics cannot become part of the layer.
    """
    users = tensor_users(nodes[0])
    if len(nodes) > 1 or len(users) != 1 or users[0].op != "call_module":
        return None
    norm = users[0]
    calls = [n for n in traced.graph.nodes if n.op == "call_module" and n.target == norm.target]
    if operation(norm, traced) not in BATCH_NORMS or len(calls) > 1:
        return None
    target = str(norm.target)
    return None if traced.get_submodule(target).running_var is None else target


def _tied_groups(traced: GraphModule, layers: dict[str, Layer]) -> tuple[Group, ...]:
    """Groups of layers with one feature: a projection shortcut joins its block's last layer."""
    nodes = {node.name: node for node in traced.graph.nodes}
    order = {name: position for position, name in enumerate(nodes)}
    inputs = _nodes_behind_images(traced)
    depth = _layer_depth(traced, layers)
    feeding = _nodes_before_layers(traced, layers)
    by_tap: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers.values():
        by_tap[feature_tap(nodes[layer.nodes[-1]], traced, inputs).name].append(layer)

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


def _nodes_behind_images(traced: GraphModule) -> set[Node]:
    """Nodes whose value depends on the images."""
    behind: set[Node] = set()
    for node in traced.graph.nodes:
        if node.op == "placeholder" or any(source in behind for source in node.all_input_nodes):
            behind.add(node)
    return behind


def _layer_depth(traced: GraphModule, layers: dict[str, Layer]) -> dict[str, int]:
    """Per node, the largest number of layers on a path from the images up to and with it."""
    calls = {name for layer in layers.values() for name in layer.nodes}
    depth: dict[str, int] = {}
    for node in traced.graph.nodes:
        before = max((depth[source.name] for source in node.all_input_nodes), default=0)
        depth[node.name] = before + (node.name in calls)
    return depth


def _nodes_before_layers(traced: GraphModule, layers: dict[str, Layer]) -> set[str]:
    """Names of the nodes from which a later layer can be reached."""
    calls = {name for layer in layers.values() for name in layer.nodes}
    before: set[str] = set()
    for node in reversed(traced.graph.nodes):
        if any(user.name in calls or user.name in before for user in node.users):
            before.add(node.name)
    return before


def _left_in_float(traced: GraphModule, layers: dict[str, Layer]) -> dict[str, str]:
    """Name → reason, for what multiplies with weights and is not quantized."""
    left = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target not in layers:
            module = traced.get_submodule(node.target)
            if any(parameter.dim() > 1 for parameter in module.parameters()):
                left[str(node.target)] = _reason(module)
        elif node.op == "get_attr":
            user = _multiplying_user(node, traced)
            if user is not None:
                owner = str(node.target).rpartition(".")[0] or str(node.target)
                left[owner] = f"its weight goes into the function {operation(user, traced)}"
    return left


def _reason(module: nn.Module) -> str:
    name = type(module).__name__
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return f"{name} is not quantized"
    if "weight" not in module._parameters:
        return f"{name} computes its weight anew at every call"
    return f"{name} computes otherwise than its base class"


def _multiplying_user(parameter: Node, traced: GraphModule) -> Node | None:
    """The first function that does more with a weight matrix than scale, shift or shape it."""
    if len(tensor_shape(parameter) or ()) < 2:
        return None
    harmless = ARITHMETIC | LAYOUTS | IDENTITIES | NORMS | PARAMETER_PLUMBING
    return next((user for user in parameter.users if operation(user, traced) not in harmless), None)
