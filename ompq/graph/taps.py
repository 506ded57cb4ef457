"""Where a layer's feature is read: what the next layer sees."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from ompq.graph.operations import (
    ACTIVATIONS,
    ADDITIONS,
    ARITHMETIC,
    IDENTITIES,
    LAYOUTS,
    NORMS,
    operation,
    tensor_shape,
    tensor_users,
)

_CARRIED = ACTIVATIONS | NORMS | IDENTITIES | LAYOUTS


def feature_tap(node: Node, traced: GraphModule, behind_images: set[Node]) -> Node:
    """Follow a layer's value through its norm, activation and residual add to its feature.

    The walk ends before the next layer, before pooling and concatenation, and where the value is
    used more than once. Two layers whose walks meet in an addition end at the same node.

    Args:
        node: the layer's call.
        traced: the network that `node` belongs to, with recorded shapes.
        behind_images: the nodes whose value depends on the images.
    """
    while True:
        following = _step(node, traced, behind_images)
        if following is None:
            return node
        node = following


def _step(node: Node, traced: GraphModule, behind_images: set[Node]) -> Node | None:
    users = tensor_users(node)
    if len(users) == 1:
        return users[0] if _carries(users[0], node, traced, behind_images) else None
    return _gate(node, users, traced)


def _carries(user: Node, node: Node, traced: GraphModule, behind_images: set[Node]) -> bool:
    """Whether `user` hands on the value of `node`, changed at most elementwise or by a sum."""
    if user.op == "output":
        return False
    name = operation(user, traced)
    if name in _CARRIED:
        return user.args[:1] == (node,) and _images_first(user, node)
    if name not in ARITHMETIC or tensor_shape(user) != tensor_shape(node):
        return False
    others = [source for source in user.all_input_nodes if source is not node]
    return name in ADDITIONS or not any(other in behind_images for other in others)


def _images_first(user: Node, node: Node) -> bool:
    """Whether the images are still the first dimension (attention puts queries and keys there)."""
    before, after = tensor_shape(node), tensor_shape(user)
    return before is None or after is None or before[:1] == after[:1]


def _gate(node: Node, users: list[Node], traced: GraphModule) -> Node | None:
    """The product in x·f(x) (swish, mish) when f is a chain of activations, else None."""
    products = [user for user in users if operation(user, traced) in {"mul", "imul"}]
    if len(users) != 2 or len(products) != 1:
        return None
    (inner,) = [user for user in users if user is not products[0]]
    while operation(inner, traced) in ACTIVATIONS and len(inner.users) == 1:
        (following,) = inner.users
        if following is products[0]:
            return following
        inner = following
    return None
