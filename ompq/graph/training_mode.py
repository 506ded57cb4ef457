"""What a network does in training alone: dropout, stochastic depth, noise.

Networks are traced in evaluation mode, in which such steps hand on their input or vanish. Here the
network is traced in training mode too, without being run, and compared: what can be kept is, as
modules that are active in training; the rest is told.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer

from ompq.errors import UNSUITED_ERRORS, OmpqError

# Path of the modules that take the place of functions; they hold no tensors.
TRAINING_PATH = "training_only"
_SWITCH_PATH = "training_arguments"
_ARGUMENTS = "in_training"
_NOTES = "training_notes"
_SHOWN = 6


class TrainingOnly(nn.Module):
    """A step that is active in training, and in evaluation hands on its input.

    Args:
        step: Module or function of one tensor that is called in training.
        inplace: Whether the step changes its input in place, as the network wrote it; here it
            works on what it is given and leaves that as it is.
    """

    def __init__(self, step: Callable[..., Tensor], inplace: bool = False) -> None:
        super().__init__()
        self.step, self.inplace = step, inplace

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """Return `x` (any shape) in evaluation, what the step makes of it in training."""
        return self.step(x, *others, **named) if self.training else x


class _ByMode(nn.Module):
    """A constant that is another one in training."""

    def __init__(self, evaluation: Any, training: Any) -> None:
        super().__init__()
        self.values = (evaluation, training)

    def forward(self) -> Any:
        return self.values[self.training]


def keep_training_steps(root: nn.Module) -> None:
    """Put modules that do something in training alone where a trace finds them, in place.

    These are modules of a user's or a library's own, without parameters, that hand on their input
    in evaluation and do not in training, such as timm's DropPath.

    Args:
        root: Network in evaluation mode.
    """
    for path, module in list(root.named_modules(remove_duplicate=False)):
        if path and _is_training_step(module):
            root.set_submodule(path, TrainingOnly(module).eval())


def compare_with_training(
    traced: GraphModule, root: nn.Module, trace: Callable[[nn.Module], Graph]
) -> None:
    """Keep what functions do in training, in a network that was traced in evaluation, in place.

    Functions that hand on their input in evaluation (`dropout`, `stochastic_depth`) become modules
    that are active in training. What other functions are called with in training is noted in their
    nodes (see `switch_arguments`), and the rest for `describe_training`.

    Args:
        traced: Network traced in evaluation mode.
        root: Network that was traced; it is not changed.
        trace: Function that traces a network in its mode, or raises `OmpqError`.
    """
    output = next(node for node in traced.graph.nodes if node.op == "output")
    # Its buffers are its own: code that runs in training alone may count in them.
    training = copy.deepcopy(root, {id(value): value for value in root.parameters()}).train()
    try:
        graph = trace(training)
    except OmpqError as error:
        output.meta[_NOTES] = (f"the network is fine-tuned as in evaluation: {error}",)
        return
    alone: list[Node] = []
    vanishing: list[Node] = []
    for node, twin in _align(list(traced.graph.nodes), list(graph.nodes)):
        if node is None or twin is None:
            alone += [] if twin is None else [twin]
            vanishing += [] if node is None else [node]
            continue
        changed = _find_changed_constants(node, twin)
        if changed and _hands_on_its_input(node):
            _replace_by_module(traced, node, twin)
        elif changed:
            node.meta[_ARGUMENTS] = changed
    texts = {"leaves out what the network does in training alone": _name(alone)}
    texts["keeps what the network does in evaluation alone"] = _name(vanishing)
    output.meta[_NOTES] = tuple(f"fine-tuning {text}: {n}" for text, n in texts.items() if n)
    traced.recompile()


def describe_training(traced: GraphModule) -> tuple[str, ...]:
    """Return what a network does in training that is not kept, one line each."""
    output = next(node for node in traced.graph.nodes if node.op == "output")
    notes: tuple[str, ...] = output.meta.get(_NOTES, ())
    return notes


def switch_arguments(traced: GraphModule) -> None:
    """Call functions in training with the arguments that they have there, in place.

    Args:
        traced: Network, rewritten or not, that was traced with `compare_with_training`.
    """
    for node in list(traced.graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        for place, value in node.meta.get(_ARGUMENTS, {}).items():
            path = f"{_SWITCH_PATH}.{node.name}_{place}"
            given = node.args[place] if isinstance(place, int) else node.kwargs.get(place)
            traced.add_submodule(path, _ByMode(given, value).train(traced.training))
            with traced.graph.inserting_before(node):
                switch = traced.graph.call_module(path)
            if isinstance(place, int):
                node.update_arg(place, switch)
            else:
                node.update_kwarg(place, switch)
    traced.recompile()


def read_training_argument(node: Node, place: int, name: str) -> Any:
    """Read an argument that is another constant in training; None where it is the same.

    Args:
        node: Node that calls a function or a method.
        place: Place of the argument, where it is given by its place.
        name: Its name, where it is given by that.
    """
    changed = node.meta.get(_ARGUMENTS, {})
    return changed.get(name, changed.get(place))


def _is_training_step(module: nn.Module) -> bool:
    """Tell whether a module hands on its input in evaluation, and does not in training."""
    if type(module).__module__.startswith("torch.nn") or isinstance(module, TrainingOnly):
        return False
    if [*module.children(), *module.parameters(), *module.buffers()]:
        return False
    return _hands_on(module, training=False) and not _hands_on(module, training=True)


def _hands_on(module: nn.Module, training: bool) -> bool:
    try:
        graph = Tracer().trace(copy.deepcopy(module).train(training))
    except UNSUITED_ERRORS:
        return False
    nodes = list(graph.nodes)
    return nodes[0].op == "placeholder" and nodes[-1].args[:1] == (nodes[0],)


def _align(nodes: list[Node], others: list[Node]) -> Iterator[tuple[Node | None, Node | None]]:
    """Pair the nodes of two traces, in order; None in the place of what one has alone."""
    keys, other_keys = list(map(_identify, nodes)), list(map(_identify, others))
    if keys == other_keys:
        yield from zip(nodes, others, strict=True)
        return
    matcher = SequenceMatcher(None, keys, other_keys, autojunk=False)
    for kind, begin, end, other_begin, other_end in matcher.get_opcodes():
        if kind == "equal":
            yield from zip(nodes[begin:end], others[other_begin:other_end], strict=True)
        else:
            yield from ((node, None) for node in nodes[begin:end])
            yield from ((None, other) for other in others[other_begin:other_end])


def _identify(node: Node) -> tuple[str, str, str]:
    """Return what a node has in common with itself in another trace."""
    return node.op, str(node.target), _find_owner(node)


def _find_owner(node: Node) -> str:
    """Find the path of the innermost module that a node is computed in; "" for the network."""
    stack = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return stack[-1] if stack else ""


def _find_changed_constants(node: Node, twin: Node) -> dict[int | str, Any]:
    """Find the arguments that are other constants in training: place or name → value there."""
    if node.op not in ("call_function", "call_method"):
        return {}
    pairs: dict[int | str, tuple[Any, Any]] = {}
    pairs |= dict(enumerate(zip(node.args, twin.args, strict=False)))
    pairs |= {key: (node.kwargs.get(key), twin.kwargs[key]) for key in twin.kwargs}
    simple = (bool, int, float, str, type(None))
    return {
        place: other
        for place, (value, other) in pairs.items()
        if isinstance(value, simple) and isinstance(other, simple) and value != other
    }


def _hands_on_its_input(node: Node) -> bool:
    """Tell whether a function of one tensor returns, called as in evaluation, what it is given."""
    if node.op != "call_function" or node.all_input_nodes != [node.args[0] if node.args else None]:
        return False
    values = torch.ones(2, 2, 2, 2)
    function: Any = node.target
    try:
        found = function(values.clone(), *node.args[1:], **node.kwargs)
    except UNSUITED_ERRORS:
        return False
    return isinstance(found, Tensor) and torch.equal(found, values)


def _replace_by_module(traced: GraphModule, node: Node, twin: Node) -> None:
    """Turn a function's node, under its own name, into the call of a module."""
    function: Any = node.target
    arguments, named = twin.args[1:], dict(twin.kwargs)
    try:
        bound = inspect.signature(function).bind(None, *arguments, **named)
        (_, *rest) = bound.arguments.items()
        arguments, named = (), dict(rest)
    except (TypeError, ValueError):  # of a function that is not Python's
        pass
    inplace = bool(named.get("inplace", False))
    if inplace:
        named["inplace"] = False
    path = f"{TRAINING_PATH}.{node.name}"
    step = _Step(function, arguments, named)
    traced.add_submodule(path, TrainingOnly(step, inplace).eval())
    source = node.args[0]
    node.op, node.target, node.args, node.kwargs = "call_module", path, (source,), {}


class _Step:
    """A function of a tensor, with its other arguments as they are in training."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.function, self.arguments, self.named = function, arguments, named

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(x, *self.arguments, **self.named)
        return found

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


def _name(nodes: list[Node]) -> str:
    """Name what nodes compute, with the module that it is in."""
    places = dict.fromkeys(map(describe_node, (n for n in nodes if n.op != "get_attr")))
    shown = list(places)[:_SHOWN]
    more = len(places) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def describe_node(node: Node) -> str:
    """Describe where a node of a traced network stands: its module, or what is called in which."""
    if node.op == "call_module":
        return str(node.target)
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    owner = _find_owner(node)
    return f"{what} in {owner}" if owner else str(what)
