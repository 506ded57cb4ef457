"""The node that holds a layer's feature: what the next layer sees."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from ompq.graph.arguments import read_arguments
from ompq.graph.operations import (
    ACTIVATIONS,
    ADDITIONS,
    ARITHMETIC,
    IDENTITIES,
    LAYOUTS,
    PRODUCTS,
    find_tensor_users,
    is_norm,
    operation,
    tensor_shape,
)

_CARRIED = ACTIVATIONS | IDENTITIES | LAYOUTS
# Of a network that simulates quantization.
_QUANTIZER = "ActivationQuantizer"


def find_feature_tap(node: Node, traced: GraphModule, behind_images: set[Node]) -> Node:
    """Follow a layer's value through its norm, activation and residual add to its feature.

    The walk ends before the next layer, before pooling and concatenation, and where the value is
    used more than once. Two layers whose walks meet in an addition end at one node.

    Args:
        node: Node that calls the layer.
        traced: Traced network that `node` belongs to, with recorded shapes.
        behind_images: Nodes whose values depend on the images.

    Returns:
        The node whose value is the feature.
    """
    while True:
        following = _find_next(node, traced, behind_images)
        if following is None:
            return node
        node = following


def _find_next(node: Node, traced: GraphModule, behind_images: set[Node]) -> Node | None:
    """Find the node that the walk goes on to; None where it ends."""
    users = find_tensor_users(node)
    if len(users) == 1:
        return users[0] if _hands_on(users[0], node, traced, behind_images) else None
    return _find_gate(node, users, traced)


def _hands_on(user: Node, node: Node, traced: GraphModule, behind_images: set[Node]) -> bool:
    """Tell whether `user` hands on the value of `node`, changed at most elementwise or by a sum."""
    if user.op == "output":
        return False
    name = operation(user, traced)
    if name == _QUANTIZER:
        return True
    if name in _CARRIED or is_norm(user, traced):
        read = read_arguments(user, traced).get("input")
        return read is node and _keeps_images_first(user, node)
    if name not in ARITHMETIC or tensor_shape(user) != tensor_shape(node):
        return False
    # A factor that depends on the images (squeeze and excitation) ends the walk, unlike a summand.
    others = [source for source in user.all_input_nodes if source is not node]
    if not all(other.meta.get("moderate", True) for other in others):
        return False  # a mask, which takes values away
    return name in ADDITIONS or not any(other in behind_images for other in others)


def _keeps_images_first(user: Node, node: Node) -> bool:
    """Tell whether images stay the first dimension (attention puts queries and keys there)."""
    before, after = tensor_shape(node), tensor_shape(user)
    return before is None or after is None or before[:1] == after[:1]


def _find_gate(node: Node, users: list[Node], traced: GraphModule) -> Node | None:
    """Find the product in x·f(x) (swish, mish) where f is a chain of activations, else None."""
    products = [user for user in users if operation(user, traced) in PRODUCTS]
    if len(users) != 2 or len(products) != 1:
        return None
    (inner,) = [user for user in users if user is not products[0]]
    while operation(inner, traced) in ACTIVATIONS and len(inner.users) == 1:
        (following,) = inner.users
        if following is products[0]:
            return following
        inner = following
    return None
