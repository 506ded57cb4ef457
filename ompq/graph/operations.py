"""What a node of a traced network does, by the name of its operation."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

ACTIVATIONS = frozenset(
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu leakyrelu logsigmoid mish "
    "prelu relu relu6 rrelu selu sigmoid silu softplus softshrink softsign swish tanh tanhshrink "
    "threshold clamp clip clamp_min clamp_max abs square sqrt exp".split()
)
BATCH_NORMS = frozenset("batchnorm1d batchnorm2d batchnorm3d syncbatchnorm batch_norm".split())
NORMS = BATCH_NORMS | frozenset(
    "layernorm layer_norm groupnorm group_norm instancenorm2d instance_norm rmsnorm rms_norm "
    "localresponsenorm".split()
)
IDENTITIES = frozenset(
    "identity dropout dropout2d alphadropout feature_dropout stochastic_depth drop_path "
    "contiguous clone detach to type_as float".split()
)
# Zeros that pad are on every grid.
LAYOUTS = frozenset(
    "flatten unflatten reshape view permute transpose squeeze unsqueeze same_padding".split()
)
MAX_POOLS = frozenset("maxpool2d max_pool2d adaptivemaxpool2d adaptive_max_pool2d amax".split())
ADDITIONS = frozenset("add iadd".split())
PARAMETER_PLUMBING = frozenset(
    "expand cat concat repeat tile getitem getattr interpolate size dim chunk split unbind".split()
)
ARITHMETIC = ADDITIONS | frozenset("mul imul sub isub div truediv itruediv".split())


def quantizable(module: nn.Module) -> bool:
    """Whether the toolkit can quantize the weights of `module`: a plain layer with a plain weight.

    A subclass that computes otherwise, or a weight that is computed anew at every call (weight
    norm, spectral norm, standardisation), would not do what its weight says.
    """
    is_layer = isinstance(module, nn.Conv2d | nn.Linear)
    return is_layer and plain_forward(module) and "weight" in module._parameters


def plain_forward(module: nn.Module) -> bool:
    """Whether a layer runs the forward pass of torch.nn's own class, and no hook before it."""
    own = type(module).forward in (nn.Conv2d.forward, nn.Linear.forward)
    return own and not module._forward_pre_hooks


def layer_of(network: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    """The quantizable layer called `name`.

    Raises:
        TypeError: that module is of another kind.
    """
    module = network.get_submodule(name)
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise TypeError(f"{name} is a {type(module).__name__}")
    return module


def operation(node: Node, network: GraphModule) -> str:
    """Lower-case name of what `node` computes, the same for its module, function and method form.

    A module goes by its closest base class in torch.nn (a subclass of LayerNorm is a layernorm),
    a function or method by its own name without the underscore of its in-place form.
    """
    if node.op == "call_module":
        module_type = type(network.get_submodule(str(node.target)))
        bases = [
            base
            for base in module_type.__mro__
            if base.__module__.startswith("torch.nn") and base is not nn.Module
        ]
        return (bases or [module_type])[0].__name__.lower()
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.strip("_").lower()


def tensor_shape(node: Node) -> tuple[int, ...] | None:
    """Shape of the node's value for the example input, None where the value is not a tensor."""
    return node.meta.get("shape")


def carries_values(node: Node) -> bool:
    """Whether the node's value is a tensor, or several of them, computed from the images' values.

    Sizes and other numbers are not; parameters (`get_attr`) are not.
    """
    holds = tensor_shape(node) is not None or node.meta.get("holds_tensors", False)
    return node.op != "get_attr" and bool(holds)


def tensor_users(node: Node) -> list[Node]:
    """Users of `node` that compute with its values (reading its shape does not count)."""
    return [user for user in node.users if user.op == "output" or tensor_shape(user) is not None]
