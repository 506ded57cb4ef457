"""Which operations have an exact form on integers, and how they are run there.

An operation that only clips, chooses or arranges values does to integers what it does to the values
that they stand for; an average is a sum of integers at a finer scale. Anything else has no exact
form.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn.functional import pad

from ompq.graph.arguments import (
    PoolingWindow,
    read_arguments,
    read_clip_bounds,
    read_dims,
    read_factor,
    read_pooling_window,
)
from ompq.graph.operations import (
    AVERAGES,
    CLIPS,
    CONCATENATIONS,
    IDENTITIES,
    LAYOUTS,
    MAX_POOLS,
    operation,
    tensor_shape,
)

CASTS = frozenset("to type type_as float double half bfloat16".split())
_DROPOUTS = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout "
    "alphadropout featurealphadropout stochastic_depth drop_path".split()
)
# Whatever the layout of the value, these hand it on as it is.
_IDENTITIES = (IDENTITIES - CASTS) | _DROPOUTS
# These take a value apart, or arrange it anew, whatever their arguments.
_LAYOUTS = LAYOUTS | frozenset(
    "adjoint broadcast_to channel_shuffle channelshuffle chunk circularpad2d diagonal expand flip "
    "fliplr flipud getattr getitem index_select max_pool1d maxpool1d moveaxis movedim narrow "
    "pixel_shuffle pixel_unshuffle pixelshuffle pixelunshuffle ravel reflectionpad2d repeat "
    "repeat_interleave replicationpad2d roll rot90 select split split_with_sizes swapaxes swapdims "
    "t take_along_dim tensor_split tile unbind unfold zeropad2d".split()
)
_REDUCTIONS = frozenset("amax amin max min".split())
_OVER_DIMENSIONS = frozenset(("mean", "sum"))
_POOLS = MAX_POOLS - _REDUCTIONS
_PADS = frozenset(("pad", "constantpad2d"))
_RESIZINGS = frozenset(("interpolate", "upsample", "upsamplingnearest2d"))
_NEAREST = (None, "nearest", "nearest-exact")


class Form(Enum):
    """What an operation does to integers.

    CLIP, KEEP and SCALE work value by value, whatever the scale, which SCALE multiplies; POOL
    chooses among the values of one channel; ARRANGE needs one scale for all values, and so do SUM
    and AVERAGE, which makes it finer.
    """

    CLIP = "clip"
    KEEP = "keep"
    SCALE = "scale"
    POOL = "pool"
    ARRANGE = "arrange"
    SUM = "sum"
    AVERAGE = "average"


def find_form(node: Node, module: GraphModule) -> Form | None:
    """Find the exact form of an operation on the integers of its only tensor.

    Args:
        node: Node that calls a module, a function or a method.
        module: Network that the node belongs to, with recorded shapes.

    Returns:
        The form; None where there is none.
    """
    try:
        return None if node.kwargs.get("out") is not None else _read_form(node, module)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None  # arguments that nobody foresaw


def _read_form(node: Node, module: GraphModule) -> Form | None:
    name = operation(node, module)
    if name in CLIPS:
        return None if read_clip_bounds(node, module) is None else Form.CLIP
    if name in AVERAGES or name == "sum":
        form = Form.SUM if name == "sum" else Form.AVERAGE
        return None if count_summed(node, module) is None else form
    if read_factor(node, module) is not None:
        return Form.SCALE
    if name in _IDENTITIES:
        active = name in _DROPOUTS and read_arguments(node, module).get("training", True)
        return None if active and node.op != "call_module" else Form.KEEP
    if name in _REDUCTIONS and _tells_places(node):
        return None
    if name in _POOLS and tensor_shape(node) is None:
        return None  # it gives places too
    if name in _POOLS or (name in _REDUCTIONS and _keeps_channels(node, module)):
        return Form.POOL
    arranges = name in _LAYOUTS | _REDUCTIONS or _is_arranging_by_arguments(node, module, name)
    return Form.ARRANGE if arranges else None


def _keeps_channels(node: Node, module: GraphModule) -> bool:
    """Tell whether a reduction chooses within the channels of images, and keeps their place."""
    before = tensor_shape(node.all_input_nodes[0]) if node.all_input_nodes else None
    after = tensor_shape(node)
    if before is None or after is None or len(before) != 4 or len(after) != 4:
        return False
    dims = read_dims(node, module)
    return dims is not None and set(dims) <= {2, 3}


def _tells_places(node: Node) -> bool:
    """Tell whether somebody reads where a largest value is, rather than the value."""
    kinds = [user.meta.get("dtype") for user in node.users]
    tells = any(kind is not None and not kind.is_floating_point for kind in kinds)
    return tensor_shape(node) is None and tells


def _is_arranging_by_arguments(node: Node, module: GraphModule, name: str) -> bool:
    """Tell whether padding adds zeros or copies, resizing copies, and pieces become one again."""
    if name in CONCATENATIONS:
        return isinstance(read_arguments(node, module).get("tensors"), Node)
    if name not in _PADS | _RESIZINGS:
        return False
    arguments = read_arguments(node, module)
    if name in _RESIZINGS:
        return arguments.get("mode") in _NEAREST
    copies = name == "pad" and arguments.get("mode") in ("reflect", "replicate", "circular")
    return copies or arguments.get("value") in (None, 0)


def count_summed(node: Node, module: GraphModule) -> int | None:
    """Count the values that every output of a sum or an average is made of.

    Args:
        node: Node whose operation is `sum` or one of `AVERAGES`.
        module: Network that the node belongs to, with recorded shapes.

    Returns:
        The number; None where it is not one for all, or depends on how many images there are.
    """
    if operation(node, module) not in _OVER_DIMENSIONS:
        window = read_pooling_window(node, module)
        return None if window is None else window.count
    dims = _read_summed_dims(node, module)
    shape = tensor_shape(node.all_input_nodes[0]) or ()
    return None if dims is None else prod(shape[dim] for dim in dims)


def _read_summed_dims(node: Node, module: GraphModule) -> tuple[int, ...] | None:
    """Read the dimensions of a sum or mean, where the images do not lie along them."""
    source = node.all_input_nodes[0]
    if read_arguments(node, module).get("dtype") is not None:
        return None
    dims, layout = read_dims(node, module), source.meta.get("layout")
    images = 0 if layout is None else layout.dim
    return None if dims is None or images in dims or tensor_shape(source) is None else dims


def sum_integers(node: Node, module: GraphModule, x: Tensor) -> Tensor:
    """Sum, of integers, what a sum or an average adds up.

    Args:
        node: Node whose operation is `sum` or one of `AVERAGES`, and which `count_summed` knows.
        module: Network that the node belongs to, with recorded shapes.
        x: Integers, any integer type.
    """
    if operation(node, module) in _OVER_DIMENSIONS:
        dims = read_dims(node, module)
        assert dims is not None
        return x.sum(dim=dims, keepdim=bool(read_arguments(node, module).get("keepdim", False)))
    window = read_pooling_window(node, module)
    assert window is not None
    return _sum_windows(window, x)


def _sum_windows(window: PoolingWindow, x: Tensor) -> Tensor:
    (above, beside), (height, width) = window.padding, window.kernel
    padded = pad(x, (beside, beside, above, above))
    windows = padded.unfold(2, height, window.stride[0]).unfold(3, width, window.stride[1])
    return windows.sum(dim=(4, 5))


def run_on_copies(run: Callable[[Callable[[Tensor], Tensor]], Any]) -> Any:
    """Run an operation that arranges integers; by float64 copies where torch has no kernel.

    Float64 holds these integers exactly, and nothing is computed with them.

    Args:
        run: Function that runs the operation on what it makes of its tensor by the function that
            it is given.
    """
    try:
        return run(lambda x: x)
    except RuntimeError:
        return map_tensors(run(lambda x: x.double().contiguous()), _to_integers)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to a tensor, or to each one of a tuple or list; a dict is left alone."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        parts = [map_tensors(part, function) for part in value]
        # Results that have names, such as `values` and `indices`, keep them.
        return type(value)(parts) if hasattr(value, "n_fields") else tuple(parts)
    return value


def find_tensors(value: Any) -> list[Tensor]:
    """List the tensors of a value: itself, or those of a tuple or list."""
    found: list[Tensor] = []
    map_tensors(value, lambda x: found.append(x) or x)  # type: ignore[func-returns-value]
    return found


def has_finite_bound(node: Node, module: GraphModule) -> bool:
    """Tell whether a clip may give a value that is no multiple of a scale: a bound other than 0."""
    bounds = read_clip_bounds(node, module) if operation(node, module) in CLIPS else None
    return bounds is not None and any(abs(bound) not in (0, inf) for bound in bounds)


def holds_floats(node: Node) -> bool:
    """Tell whether a node's value is made of floats, as far as is known."""
    kind = node.meta.get("dtype")
    if tensor_shape(node) is None:
        return bool(node.meta.get("holds_tensors", False))
    return kind is None or kind.is_floating_point


def _to_integers(x: Tensor) -> Tensor:
    return torch.round(x).long() if x.is_floating_point() else x
