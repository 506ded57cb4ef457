"""What torch.fx does not record: assignments to parts, new tensors, compiled functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.fx.proxy import TraceError

# These make tensors of sizes, which a network may compute from those of its images.
_FACTORIES = "zeros ones full empty eye arange linspace rand randn".split()


class RecordingProxy(fx.Proxy):
    """A stand-in whose parts can be assigned to: what reads it later reads the changed copy."""

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(self, fx.proxy.Attribute):
            raise TraceError("a part of an attribute is assigned to")
        self.node = self.tracer.create_proxy(
            "call_function", set_item, (self, index, value), {}
        ).node


def set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """Return a copy of a tensor in which a part is replaced.

    Args:
        x: Tensor of any shape; it is not changed.
        index: Index of the part, as in `x[index]`.
        value: Number or tensor to put there.

    >>> set_item(torch.zeros(3), slice(0, 2), 1.0)
    tensor([1., 1., 0.])
    """
    changed = x.clone()
    changed[index] = value
    return changed


@contextmanager
def recording_calls(settle: Callable[[Any], Any]) -> Iterator[None]:
    """Record, while the body traces, calls of what would refuse stand-ins.

    These are torch's functions that make tensors, and functions compiled by `torch.jit.script`.

    Args:
        settle: Function that returns the number that a stand-in stands for, or the stand-in.
    """
    places: list[tuple[dict[str, Any], str]] = [(vars(torch), name) for name in _FACTORIES]
    places += _find_scripted()
    originals = [place[name] for place, name in places]
    for (place, name), function in zip(places, originals, strict=True):
        place[name] = _record(function, settle)
    try:
        yield
    finally:
        for (place, name), function in zip(places, originals, strict=True):
            place[name] = function


def _find_scripted() -> list[tuple[dict[str, Any], str]]:
    """Find the compiled functions that code can call by a global name: globals and name."""
    homes = [
        vars(module) for module in list(sys.modules.values()) if isinstance(module, ModuleType)
    ]
    # By the type itself: asked for its class, many a deprecated name warns.
    return [
        (home, name)
        for home in homes
        for name, value in list(home.items())
        if issubclass(type(value), torch.jit.ScriptFunction)
    ]


def _record(function: Callable[..., Any], settle: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function that records its calls with stand-ins, and carries out all others."""
    # A compiled function has a name that only itself knows.
    name = getattr(function, "name", None) or function.__name__

    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    target = run if isinstance(function, torch.jit.ScriptFunction) else function
    run.__name__ = run.__qualname__ = str(name)

    def call(*args: Any, **kwargs: Any) -> Any:
        proxies: list[fx.Proxy] = []

        def look(value: Any) -> Any:
            value = settle(value) if isinstance(value, fx.Proxy) else value
            proxies.extend([value] if isinstance(value, fx.Proxy) else [])
            return value

        settled = map_aggregate(args, look), map_aggregate(kwargs, look)
        if not proxies:
            return function(*settled[0], **settled[1])
        return proxies[0].tracer.create_proxy("call_function", target, *settled)

    return call
