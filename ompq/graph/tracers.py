"""Tracers of a network: one that knows no values, and one that knows the shape of an image."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.proxy import TraceError
from torch.jit import ScriptModule

from ompq.errors import UNSUITED_ERRORS, OmpqError
from ompq.graph.operations import NORM_TYPES
from ompq.graph.recording import RecordingProxy, recording_calls
from ompq.graph.training_mode import TrainingOnly

_LAYERS = (nn.Conv2d, nn.Linear)
_NUMBERS = (bool, int, float, tuple, torch.dtype)
# While torch.fx traces, calls of modules and reads of their parameters are recorded; these are not.
_CALL: Any = nn.Module.__call__
_READ: Any = nn.Module.__getattr__


class LayerTracer(fx.Tracer):
    """A tracer that stops at layers and norms, at subclasses of them, and at torch.nn's modules.

    Args:
        opaque: Further classes of modules that are not traced into.
        wrapped: Functions that are not traced into.
    """

    def __init__(
        self, opaque: tuple[type, ...] = (), wrapped: tuple[Callable[..., Any], ...] = ()
    ) -> None:
        super().__init__(autowrap_functions=wrapped)
        self._opaque = opaque

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """Trace a module, which keeps none of the values that its code puts by meanwhile."""
        assert isinstance(root, nn.Module)
        with _forgetting_values(root):
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module is called as a whole."""
        if isinstance(m, (*_LAYERS, *NORM_TYPES, TrainingOnly, ScriptModule, *self._opaque)):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record or enter a module; one that the code makes as it goes, as a slice, is entered."""
        try:
            self.path_of_module(m)
        except NameError:
            known = set(self.root.modules())
            if any(part not in known and _has_values(part) for part in m.modules()):
                raise OmpqError(
                    f"{type(self.root).__name__} calls a {type(m).__name__} that is none of its "
                    "modules; keep it as an attribute, in an nn.ModuleList or nn.ModuleDict"
                ) from None
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def _has_values(module: nn.Module) -> bool:
    """Tell whether a module has parameters or buffers of its own, those of its parts aside."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return bool(own)


@contextmanager
def _forgetting_values(root: nn.Module) -> Iterator[None]:
    """Give modules back what they held where tracing has put its values there, as in a cache."""
    before = {
        module: {name: _copy_container(value) for name, value in vars(module).items()}
        for module in root.modules()
    }
    try:
        yield
    finally:
        for module, held in before.items():
            for name, value in list(vars(module).items()):
                if not _holds_values(value):
                    continue
                if name in held:
                    vars(module)[name] = held[name]
                else:
                    del vars(module)[name]


def _copy_container(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, dict | list | set) else value


def _holds_values(value: Any) -> bool:
    """Tell whether something is a value of a trace, or a collection that has one."""
    if isinstance(value, dict):
        return any(map(_holds_values, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_values, value))
    return isinstance(value, fx.Proxy)


def is_opaque(function: Any) -> bool:
    """Tell whether a function is Python code of others than PyTorch, called as a whole."""
    home = str(getattr(function, "__module__", "")).partition(".")[0]
    return inspect.isfunction(function) and home not in ("torch", "ompq")


class ShapeTracer(LayerTracer):
    """A tracer that answers what code asks about shapes: `if x.shape[2] < 7`, `range(x.size(1))`.

    What it answers holds for images of one shape. Only what is the same for one image and for two
    is answered, and nothing that depends on the values of a tensor.

    Args:
        input_shape: Channels, height and width of one image.
        reads_buffers: Whether what is computed of buffers is recorded, instead of carried out.
        opens_functions: Whether functions that were to be called as a whole (`torch.fx.wrap`) are
            traced into.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        reads_buffers: bool = False,
        opens_functions: bool = False,
    ) -> None:
        super().__init__()
        self.proxy_buffer_attributes = reads_buffers
        self._opens_functions = opens_functions
        self._input_shape = input_shape
        self._runs: list[_ShapeRun] = []

    def trace(
        self,
        root: nn.Module | Callable[..., Any],
        concrete_args: dict[str, Any] | None = None,
    ) -> fx.Graph:
        """Trace a module as torch.fx does."""
        assert isinstance(root, nn.Module)
        self._runs = [_ShapeRun(root, (images, *self._input_shape)) for images in (1, 2)]
        try:
            with recording_calls(self._settle):
                return super().trace(root, concrete_args)
        finally:
            self._runs = []

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any
    ) -> Any:
        """Record a call, or enter the function that is called."""
        enters = kind == "call_function" and self._opens_functions and is_opaque(target)
        if enters and not self._drops(target, args, kwargs):
            return target(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def _drops(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether a function hands on what it is given in evaluation, such as dropout."""
        signature = inspect.signature(function)
        bound = signature.bind(*args, **kwargs)
        if "training" in signature.parameters:
            bound.arguments["training"] = False
        before = set(self.graph.nodes)
        found = function(*bound.args, **bound.kwargs)
        for node in reversed([node for node in self.graph.nodes if node not in before]):
            self.graph.erase_node(node)
        return any(found is given for given in args)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return a stand-in that can be asked for a number."""
        return _ShapeProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer the question of an `if`, `assert` or `while`."""
        return bool(self.read(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Go through a shape, a tuple, or the first dimension of a tensor."""
        return map(obj.__getitem__, range(len(self.read(obj))))

    def read(self, obj: fx.Proxy) -> Any:
        """Return what a stand-in stands for, a tensor of it without values.

        Raises:
            TraceError: it depends on values, on the number of images, or cannot be told.
        """
        try:
            one, two = (run.read(obj.node) for run in self._runs)
            differs = _describe(one) != _describe(two)
        except UNSUITED_ERRORS as error:
            raise TraceError(f"what it asks depends on values: {error}") from error
        if differs:
            raise TraceError("what it asks depends on the number of images")
        return one

    def _settle(self, obj: fx.Proxy) -> Any:
        """Return the numbers that a stand-in stands for, where it stands for some, else itself."""
        try:
            value = self.read(obj)
        except TraceError:
            return obj
        return value if isinstance(value, _NUMBERS) else obj


class _ShapeProxy(RecordingProxy):
    """A stand-in that is a number where one is needed, if it stands for one."""

    tracer: ShapeTracer

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _ShapeAttribute(self, k)

    def __index__(self) -> int:
        return int(self.tracer.read(self))

    def __int__(self) -> int:
        return int(self.tracer.read(self))

    def __float__(self) -> float:
        return float(self.tracer.read(self))

    def __len__(self) -> int:
        return len(self.tracer.read(self))


class _ShapeAttribute(_ShapeProxy, fx.proxy.Attribute):
    """An attribute or method of what a stand-in stands for."""


class _ShapeRun(fx.Interpreter):
    """A run of a graph that is still being traced, on images without values.

    Args:
        root: Module that is traced.
        shape: Images, channels, height and width.
    """

    def __init__(self, root: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__(root, garbage_collect_values=False, graph=fx.Graph())
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        parameter = next(root.parameters(), None)
        with self._mode:
            self._images = torch.empty(
                shape, device=None if parameter is None else parameter.device
            )

    def read(self, node: fx.Node) -> Any:
        """Return what a node holds, after all that was recorded before it."""
        with _as_outside_of_tracing(), self._mode, torch.no_grad():
            for recorded in node.graph.nodes:
                if recorded not in self.env and recorded.op != "output":
                    self.env[recorded] = self.run_node(recorded)
        return self.env[node]

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the images: no other argument is left where a network is traced."""
        return self._images


@contextmanager
def _as_outside_of_tracing() -> Iterator[None]:
    """Call modules and read their parameters without recording it."""
    traced = nn.Module.__call__, nn.Module.__getattr__
    _patch(_CALL, _READ)
    try:
        yield
    finally:
        _patch(*traced)


def _patch(call: Any, read: Any) -> None:
    nn.Module.__call__ = call  # type: ignore[method-assign]
    nn.Module.__getattr__ = read  # type: ignore[method-assign]


def _describe(value: Any) -> Any:
    """Return what two runs must have in common: a number, or the length of what is gone through."""
    return len(value) if isinstance(value, torch.Tensor | tuple | list) else value
