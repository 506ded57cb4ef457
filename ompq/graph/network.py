"""The view of a network that every stage uses: layers, tied groups, features, blocks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from torch import nn
from torch.fx import GraphModule, Node

from ompq.errors import OmpqError
from ompq.graph.blocks import Block, find_blocks
from ompq.graph.exclusions import Exclusions
from ompq.graph.features import find_feature_tap
from ompq.graph.operations import (
    BATCH_NORMS,
    carries_values,
    find_tensor_users,
    get_layer,
    is_quantizable,
    operation,
    reads_images,
    tensor_shape,
)
from ompq.graph.parameters import Accounts, ParameterCount
from ompq.graph.products import find_probabilities, find_product_layers, find_product_ops


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
        params: Number of parameters of all its layers, shared ones counted once.
        ops: Operations of all its layers for one image.
        float_params: Number of parameters that stay in float, of the whole network; its first
            group counts them.
        folded_params: Number of the float network's further parameters, which folding does away
            with (biases before a batch norm); less than 0 where the accounting adds some.
        products: Nodes of the products of two values (attention) that lead to its layers: they read
            the activation width that these read.
        product_ops: Operations of these products for one image.
        probabilities: Nodes of the values among what these products read that are shares of one, as
            a softmax gives them: they keep 8 bits.
        probability_ops: Operations of the products that read them.
    """

    layers: tuple[str, ...]
    tap: str
    role: str
    params: int
    ops: int
    float_params: int = 0
    folded_params: int = 0
    products: tuple[str, ...] = ()
    product_ops: int = 0
    probabilities: tuple[str, ...] = ()
    probability_ops: int = 0

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
        float_layers: Why a module or parameter is not quantized, by its name; every parameter that
            is in no layer is of one of them.
        parameters: How many of the network's parameters are quantized.
        original: The network before it was traced, in evaluation mode; it is never changed.
        exclusions: What was left as it is.
        checked: Whether the traced network was found to compute what the original one does.
    """

    module: GraphModule
    input_shape: tuple[int, int, int]
    layers: dict[str, Layer]
    groups: tuple[Group, ...]
    float_layers: dict[str, str]
    parameters: ParameterCount
    original: nn.Module = field(repr=False)
    exclusions: Exclusions = field(default_factory=Exclusions)
    checked: bool = False

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

    def weight_owners(self) -> dict[str, str]:
        """Map each layer to the first layer that computes with the same weight: most to itself."""
        first: dict[int, str] = {}
        return {
            name: first.setdefault(id(self.layer_module(name).weight), name) for name in self.layers
        }

    def with_module(self, module: GraphModule) -> NetworkGraph:
        """Return the view of a rewritten network that has these layers and keeps their costs.

        Args:
            module: Rewritten network, with recorded shapes.
        """
        # Parameters are counted in the network as it was traced: with their batch norm, which
        # folding removes.
        view = analyse(module, self.input_shape, self.original, self.exclusions)
        layers = {}
        for name, layer in view.layers.items():
            before = self.layers[name]
            # A further batch norm, right behind the layer once its own is folded, is not its own.
            norm = layer.batch_norm if layer.batch_norm == before.batch_norm else None
            layers[name] = replace(layer, params=before.params, batch_norm=norm)
        counted = {group.name: group for group in self.groups}
        groups = tuple(
            replace(
                group,
                params=counted[group.name].params,
                float_params=counted[group.name].float_params,
                folded_params=counted[group.name].folded_params,
            )
            for group in view.groups
        )
        return replace(self, module=module, layers=layers, groups=groups)


def analyse(
    traced: GraphModule,
    input_shape: tuple[int, int, int],
    original: nn.Module,
    exclusions: Exclusions,
) -> NetworkGraph:
    """Find the layers of a traced network, their groups, and what stays in float.

    Args:
        traced: Traced network with recorded shapes.
        input_shape: Channels, height and width of one image.
        original: The network before it was traced.
        exclusions: What is left as it is.

    Raises:
        OmpqError: there is nothing to quantize.
    """
    calls = _find_layer_calls(traced, exclusions)
    if not calls:
        raise OmpqError("the network calls no Conv2d or Linear layer: there is nothing to quantize")
    layers = _describe_layers(traced, calls, exclusions)
    parts = {name: [layer.batch_norm] if layer.batch_norm else [] for name, layer in layers.items()}
    accounts = Accounts(original, traced, parts, exclusions.modules)
    groups = _form_groups(traced, layers)
    groups = assign_products(groups, traced, layers)
    return NetworkGraph(
        module=traced,
        input_shape=input_shape,
        layers=layers,
        groups=account_for_rest(groups, accounts.count),
        float_layers=accounts.find_float_parts(),
        parameters=accounts.count,
        original=original,
        exclusions=exclusions,
    )


def assign_products(
    groups: tuple[Group, ...], traced: GraphModule, layers: Mapping[str, Layer]
) -> tuple[Group, ...]:
    """Let every group count the products of two values that lead to its layers.

    Args:
        groups: Groups of a network.
        traced: Traced network with recorded shapes of one image.
        layers: Its layers by name, in execution order.
    """
    ops = find_product_ops(traced)
    calls = {call: layer.name for layer in layers.values() for call in layer.nodes}
    reached = find_product_layers(traced, ops, calls)
    shares = find_probabilities(traced, ops)

    def assign(group: Group) -> Group:
        products = tuple(name for name in ops if reached[name] in group.layers)
        return replace(
            group,
            products=products,
            product_ops=sum(ops[name] for name in products),
            probabilities=tuple(value for name in products for value in shares[name]),
            probability_ops=sum(ops[name] for name in products if shares[name]),
        )

    return tuple(map(assign, groups))


def account_for_rest(groups: tuple[Group, ...], count: ParameterCount) -> tuple[Group, ...]:
    """Let the first group count the parameters that are in no group."""
    folded = count.quantized - sum(group.params for group in groups)
    first = replace(groups[0], float_params=count.in_float, folded_params=folded)
    return (first, *groups[1:])


def _find_layer_calls(traced: GraphModule, exclusions: Exclusions) -> dict[str, list[Node]]:
    """Find the nodes that call each layer; layers that work on constants do not count."""
    calls: dict[str, list[Node]] = defaultdict(list)
    for node in traced.graph.nodes:
        if node.op == "call_module" and is_quantizable(traced.get_submodule(node.target)):
            calls[node.target].append(node)
    return {
        name: nodes
        for name, nodes in calls.items()
        if name not in exclusions.modules
        and all(carries_values(node) and reads_images(node) for node in nodes)
    }


def _describe_layers(
    traced: GraphModule, calls: Mapping[str, list[Node]], exclusions: Exclusions
) -> dict[str, Layer]:
    """Describe every layer; a parameter that several share counts with the first of them."""
    shared = Counter(id(get_layer(traced, name).weight) for name in calls)
    seen: set[int] = set()
    layers = {}
    for name, nodes in calls.items():
        module = get_layer(traced, name)
        batch_norm = None
        if shared[id(module.weight)] == 1:
            batch_norm = _find_batch_norm(traced, nodes, exclusions)
        layers[name] = _describe(traced, name, nodes, batch_norm, seen)
        seen |= {id(parameter) for parameter in module.parameters()}
    return layers


def _describe(
    traced: GraphModule, name: str, nodes: list[Node], batch_norm: str | None, seen: set[int]
) -> Layer:
    """Describe a layer; parameters whose identities are in `seen` are counted elsewhere."""
    module = get_layer(traced, name)
    weight, bias = module.weight, module.bias
    output_shape = tensor_shape(nodes[-1]) or ()
    outputs, weights = weight.shape[0], weight.numel()
    # Of all calls: a layer that is called twice costs twice.
    positions = sum(prod(tensor_shape(node) or ()) // outputs for node in nodes)
    is_conv = isinstance(module, nn.Conv2d)
    per_position = weights + 5 * outputs if is_conv else 2 * weights + outputs
    own_bias = 0 if bias is None or id(bias) in seen else bias.numel()
    return Layer(
        name=name,
        kind="conv" if is_conv else "linear",
        nodes=tuple(node.name for node in nodes),
        batch_norm=batch_norm,
        weight_shape=tuple(weight.shape),
        output_shape=output_shape[1:],
        weights=weights,
        params=(0 if id(weight) in seen else weights) + (2 * outputs if batch_norm else own_bias),
        macs=weights * positions,
        ops=per_position * positions,
    )


def _find_batch_norm(traced: GraphModule, nodes: list[Node], exclusions: Exclusions) -> str | None:
    """Find the path of the batch norm that reads one layer and nothing else, channel by channel.

    A batch norm without running statistics does not count: it cannot become part of the layer.

    Args:
        traced: Traced network.
        nodes: Nodes that call the layer.
        exclusions: What is left as it is.
    """
    users = find_tensor_users(nodes[0])
    while len(users) == 1 and _is_identity(users[0], traced):
        users = find_tensor_users(users[0])
    if len(nodes) > 1 or len(users) != 1 or users[0].op != "call_module":
        return None
    norm, target = users[0], str(users[0].target)
    calls = [n for n in traced.graph.nodes if n.op == "call_module" and n.target == norm.target]
    if operation(norm, traced) not in BATCH_NORMS or len(calls) > 1:
        return None
    # A norm works on dimension 1, where a linear layer has its outputs in the last one.
    is_conv = isinstance(get_layer(traced, str(nodes[0].target)), nn.Conv2d)
    if len(tensor_shape(nodes[0]) or ()) != (4 if is_conv else 2):
        return None
    if target in exclusions.norms or target in exclusions.modules:
        return None
    return None if traced.get_submodule(target).running_var is None else target


def _is_identity(node: Node, traced: GraphModule) -> bool:
    """Tell whether a node hands its input on, in training too."""
    called = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    return type(called) is nn.Identity


def _form_groups(traced: GraphModule, layers: dict[str, Layer]) -> tuple[Group, ...]:
    """Group layers that share a feature, as a projection shortcut and its block's last layer do.

    Layers that share a weight are in one group as well: they can have one width only.
    """
    nodes = {node.name: node for node in traced.graph.nodes}
    order = {name: position for position, name in enumerate(nodes)}
    behind_images = {node for node in traced.graph.nodes if reads_images(node)}
    depth = _measure_layer_depth(traced, layers)
    feeding = _find_nodes_before_layers(traced, layers)
    by_tap: dict[str, list[Layer]] = defaultdict(list)
    tap_of_weight: dict[int, str] = {}
    for layer in layers.values():
        feature = find_feature_tap(nodes[layer.nodes[-1]], traced, behind_images)
        tap = tap_of_weight.setdefault(id(get_layer(traced, layer.name).weight), feature.name)
        # A weight that ties two features ties all layers of both.
        if tap != feature.name:
            by_tap[tap] += by_tap.pop(feature.name, [])
        by_tap[tap].append(layer)

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
