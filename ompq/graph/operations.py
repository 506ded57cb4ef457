"""The one place that reads what a node of a traced network computes.

Here are the name of a node's operation and the families of such names, what its value is and who
computes with it, the layer that it calls, and the arguments of clips and poolings, whichever way
they are written: as a module, as a function or as a method, by position or by keyword.
"""

from __future__ import annotations

from math import inf
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from ompq.graph.layout import ImageLayout

NORM_TYPES = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, _InstanceNorm)
# Methods that torch.nn's classes do not compute with.
_NOT_COMPUTING = frozenset("extra_repr reset_parameters reset_running_stats train".split())
# Names as `operation` gives them.
ACTIVATIONS = frozenset(
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu leakyrelu logsigmoid mish "
    "prelu relu relu6 rrelu selu sigmoid silu softplus softshrink softsign swish tanh tanhshrink "
    "threshold clamp clip clamp_min clamp_max abs square sqrt exp".split()
)
CLIPS = frozenset("relu relu6 hardtanh clamp clip clamp_min clamp_max".split())
BATCH_NORMS = frozenset("batchnorm1d batchnorm2d batchnorm3d syncbatchnorm batch_norm".split())
NORMS = BATCH_NORMS | frozenset(
    "layernorm layer_norm groupnorm group_norm instancenorm2d instance_norm rmsnorm rms_norm "
    "localresponsenorm".split()
)
IDENTITIES = frozenset(
    "identity dropout dropout2d alphadropout feature_dropout stochastic_depth drop_path "
    "TrainingOnly contiguous clone detach to type_as float".split()
)
# Padding is among them: zero is a value of every fake quantizer.
LAYOUTS = frozenset(
    "flatten unflatten reshape view permute transpose squeeze unsqueeze same_padding".split()
)
MAX_POOLS = frozenset("maxpool2d max_pool2d adaptivemaxpool2d adaptive_max_pool2d amax".split())
AVERAGES = frozenset("avgpool2d avg_pool2d adaptiveavgpool2d adaptive_avg_pool2d mean".split())
ADDITIONS = frozenset("add iadd".split())
PRODUCTS = frozenset("mul imul multiply".split())
QUOTIENTS = frozenset("div truediv itruediv true_divide divide".split())
ARITHMETIC = ADDITIONS | PRODUCTS | QUOTIENTS | frozenset("sub isub subtract rsub neg".split())
# What prepares a parameter, or reads its size, without multiplying anything with it.
PARAMETER_PLUMBING = frozenset(
    "expand cat concat repeat tile getitem getattr interpolate size dim chunk split unbind".split()
)


def operation(node: Node, network: GraphModule) -> str:
    """Return the lower-case name of what a node computes: one name for module, function and method.

    A module goes by its closest base class in torch.nn where it computes by that class's code, and
    by its own class where it does not; a function or method by its own name without the underscore
    of its in-place form.

    Args:
        node: Node of the traced network.
        network: Traced network.
    """
    if node.op == "call_module":
        return _name_module(network.get_submodule(str(node.target)))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.strip("_").lower()


def tensor_shape(node: Node) -> tuple[int, ...] | None:
    """Return the shape of a node's value for one image; None where the value is no tensor."""
    return node.meta.get("shape")


def carries_values(node: Node) -> bool:
    """Tell whether a node's value is made of tensors that are computed from the images' values.

    Sizes and other numbers are not, and neither are parameters (`get_attr`) nor what is computed
    of parameters alone.
    """
    holds = tensor_shape(node) is not None or node.meta.get("holds_tensors", False)
    return node.op != "get_attr" and bool(holds) and node.meta.get("from_images", True)


def reads_images(node: Node) -> bool:
    """Tell whether a node computes with values of the images, directly or through others."""
    return node.op == "placeholder" or any(map(carries_values, node.all_input_nodes))


def image_layout(node: Node) -> ImageLayout | None:
    """Return where the images are in a node's value; None where they cannot be told apart."""
    found: ImageLayout | None = node.meta.get("layout", ImageLayout())
    return found if tensor_shape(node) is not None else None


def find_tensor_users(node: Node) -> list[Node]:
    """Find the users of a node that compute with its values (reading its shape does not count)."""
    return [user for user in node.users if user.op == "output" or tensor_shape(user) is not None]


def is_norm(node: Node, network: GraphModule) -> bool:
    """Tell whether a node normalises: as one of torch.nn's norms, or as a class derived of one."""
    if node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), NORM_TYPES):
        return True
    return operation(node, network) in NORMS


def is_quantizable(module: nn.Module) -> bool:
    """Tell whether a module is a layer that computes with its weight as torch.nn's own layer does.

    A subclass that computes otherwise, or a weight that is computed anew at every call (weight
    norm, spectral norm, standardisation), would not do what its weight says.
    """
    is_layer = isinstance(module, nn.Conv2d | nn.Linear) and not has_unknown_shape(module)
    return is_layer and runs_library_code(module) and "weight" in module._parameters


def has_unknown_shape(module: nn.Module) -> bool:
    """Tell whether a module is a lazy one that no image has passed yet."""
    return any(map(is_lazy, module.parameters(recurse=False)))


def runs_library_code(module: nn.Module) -> bool:
    """Tell whether a module computes by the code of its closest base class in torch.nn alone.

    A subclass that replaces a method which that class computes with does not, nor does a module
    with hooks, or with a forward pass of its own set into the object.
    """
    base = _find_library_class(type(module))
    if base is None or module._forward_hooks or module._forward_pre_hooks:
        return False
    if is_parametrized(module):
        return False
    kinds = type(module).__mro__
    own, inherited = kinds[: kinds.index(base)], kinds[kinds.index(base) : kinds.index(nn.Module)]
    methods = {name for kind in inherited for name in vars(kind) if not name.startswith("__")}
    computing = methods - _NOT_COMPUTING | {"__call__", "forward"}
    # A property may stand in the place of a weight.
    properties = any(isinstance(v, property) for kind in own for v in vars(kind).values())
    changed = {name for kind in own for name in vars(kind)} | set(vars(module))
    return not properties and not computing & changed


def _find_library_class(kind: type) -> type | None:
    """Find the closest base class in torch.nn, the class itself included."""
    found = (base for base in kind.__mro__ if base.__module__.startswith("torch.nn"))
    base = next(found, None)
    return None if base is nn.Module else base


def _name_module(module: nn.Module) -> str:
    """Name a module by torch.nn's class, in lower case, or by its own, which is never so."""
    name = type(module).__name__
    base = _find_library_class(type(module))
    if base is not None and runs_library_code(module):
        return base.__name__.lower()
    # An object with hooks, or with code of its own, may be of torch.nn's own class.
    return f"{name} with code of its own" if type(module) is base or name.islower() else name


def get_layer(network: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    """Return the convolution or linear layer called `name`.

    Raises:
        TypeError: that module is of another kind.
    """
    module = network.get_submodule(name)
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise TypeError(f"{name} is a {type(module).__name__}")
    return module


def read_clip_bounds(node: Node, module: GraphModule) -> tuple[float, float]:
    """Read the least and the largest value that a clipping activation lets pass.

    Args:
        node: Node whose operation is one of `CLIPS`.
        module: Traced network that the node belongs to.

    Returns:
        The two bounds, −∞ and ∞ where there is none.
    """
    name = operation(node, module)
    if name == "relu":
        return 0.0, inf
    if name == "relu6":
        return 0.0, 6.0
    if node.op == "call_module":
        found = module.get_submodule(str(node.target))
        return float(found.min_val), float(found.max_val)  # type: ignore[arg-type]
    given = dict(zip(("min", "max"), node.args[1:], strict=False)) | dict(node.kwargs)
    # hardtanh has other keywords and defaults; clamp_max has its only bound at the place of `min`.
    if name == "hardtanh":
        given = {"min": given.get("min_val", given.get("min", -1.0)), **given}
        given = {"max": given.get("max_val", given.get("max", 1.0)), **given}
    if name == "clamp_max":
        given = {"max": given.get("max", given.get("min"))}
    low, high = given.get("min"), given.get("max")
    return (-inf if low is None else float(low)), (inf if high is None else float(high))  # type: ignore[arg-type]


def read_pooling_window(
    node: Node, module: GraphModule
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """Read kernel, stride and padding of an average over height and width.

    Args:
        node: Node whose operation is one of `AVERAGES`.
        module: Traced network that the node belongs to.

    Returns:
        Kernel, stride and padding, each (height, width); None where not every output divides by
        the size of the kernel, or other dimensions are averaged.
    """
    before, after = tensor_shape(node.all_input_nodes[0]), tensor_shape(node)
    if before is None or after is None or len(before) != 4 or before[:2] != after[:2]:
        return None
    name = operation(node, module)
    if name == "mean" or name.startswith("adaptive"):
        rows, columns = after[2:] if len(after) == 4 else (1, 1)
        # Adaptive windows of several sizes are no pooling with one kernel.
        if before[2] % rows or before[3] % columns:
            return None
        kernel = before[2] // rows, before[3] // columns
        return kernel, kernel, (0, 0)
    return _read_given_window(node, module)


def _read_given_window(
    node: Node, module: GraphModule
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """Read the window of a pooling whose kernel, stride and padding are written down."""
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    if node.op == "call_module":
        pool = module.get_submodule(str(node.target))
        values = {key: getattr(pool, key) for key in (*names, "divisor_override")}
    else:
        values = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    kernel = _to_pair(values["kernel_size"])
    stride = _to_pair(values.get("stride") or kernel)
    padding = _to_pair(values.get("padding", 0))
    if values.get("ceil_mode") or values.get("divisor_override"):
        return None
    if padding != (0, 0) and not values.get("count_include_pad", True):
        return None
    return kernel, stride, padding


def _to_pair(value: Any) -> tuple[int, int]:
    """Write what stands for height and width as two numbers: one number, or one or two of them."""
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)
