"""The one place that reads what a node of a traced network computes.

Here are the name of a node's operation and the families of such names, what its value is and who
computes with it, and the layer that it calls; arguments.py reads its arguments.
"""

from __future__ import annotations

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
CONCATENATIONS = frozenset("cat concat concatenate stack".split())
DIFFERENCES = frozenset("sub isub subtract".split())
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


def find_values(node: Node) -> list[Node]:
    """Find the nodes that a node reads values of the images from, each once."""
    return [source for source in node.all_input_nodes if carries_values(source)]


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
