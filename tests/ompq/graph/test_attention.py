"""Attention of every spelling is opened into layers, products and a softmax."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ompq.graph import NetworkGraph, trace
from ompq.graph.operations import operation
from ompq.graph.training_mode import describe_training

SIZE = (3, 8, 8)
WIDTH, HEADS, ROWS = 12, 2, 16


class Rows(nn.Module):
    """Pieces of an image as rows, something done to them, and a linear layer."""

    def __init__(self, attend: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.cut, self.head = nn.Conv2d(3, WIDTH, 2, 2), nn.Linear(WIDTH, 5)
        self.attend = attend
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits."""
        rows = self.cut(x).flatten(2).transpose(1, 2)
        return self.head(self.attend(self, rows).mean(1))


def check(network: nn.Module) -> tuple[NetworkGraph, Counter[str]]:
    """Trace a network, compare it, and count its operations."""
    network.eval()
    graph = trace(network, SIZE)
    images = torch.randn(3, *SIZE)
    torch.testing.assert_close(graph.module(images), network(images), rtol=1e-4, atol=1e-5)
    return graph, Counter(operation(node, graph.module) for node in graph.module.graph.nodes)


def multihead(**settings: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **settings)


ABOVE = torch.ones(ROWS, ROWS, dtype=torch.bool).triu(1)
INFINITE = torch.zeros(ROWS, ROWS).masked_fill(ABOVE, -torch.inf)
CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "itself": lambda net, x: net.attention(x, x, x)[0],
    "without weights": lambda net, x: net.attention(x, x, x, need_weights=False)[0],
    "by name": lambda net, x: net.attention(query=x, key=x, value=x)[0],
    "masked": lambda net, x: net.attention(x, x, x, attn_mask=INFINITE)[0],
    "masked by truth": lambda net, x: net.attention(x, x, x, attn_mask=ABOVE)[0],
    "causal": lambda net, x: net.attention(x, x, x, attn_mask=INFINITE, is_causal=True)[0],
    "weights": lambda net, x: x * net.attention(x, x, x)[1].sum(1)[:, :, None],
    "weights of heads": lambda net, x: (
        x * net.attention(x, x, x, average_attn_weights=False)[1].sum((1, 2))[:, :, None]
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_multihead_attention_becomes_layers_and_products(name: str) -> None:
    graph, found = check(Rows(CALLS[name], attention=multihead()))
    assert found["matmul"] == 2 and found["softmax"] == 1
    assert {"attention.in_proj", "attention.out_proj"} <= set(graph.layers)
    assert graph.parameters.in_float == 0


def test_rows_may_come_before_images() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, HEADS, bias=False)
    turned = Rows(
        lambda net, x: net.attention(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1),
        attention=attention,
    )
    _, found = check(turned)
    assert found["matmul"] == 2


@pytest.mark.parametrize(
    "settings", [{"add_zero_attn": True}, {"add_bias_kv": True}, {"kdim": WIDTH, "vdim": 4}]
)
def test_other_attention_stays_whole(settings: dict[str, Any]) -> None:
    def attend(net: Any, x: Tensor) -> Tensor:
        given = x if "vdim" not in settings else x[..., :4]
        return net.attention(x, x, given)[0]

    _, found = check(Rows(attend, attention=multihead(**settings)))
    assert found["multiheadattention"] == 1


def test_attention_to_another_value_stays_whole() -> None:
    _, found = check(Rows(lambda net, x: net.attention(x, 2 * x, x)[0], attention=multihead()))
    assert found["multiheadattention"] == 1 and not found["softmax"]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoders_of_transformers_are_opened(norm_first: bool, activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 20, 0.1, activation, batch_first=True, norm_first=norm_first
    )
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
    graph, found = check(Rows(lambda net, x: net.encoder(x), encoder=encoder))
    assert found["matmul"] == 4 and found["layernorm"] == 5
    assert {"encoder.layers.1.linear2", "encoder.layers.0.self_attn.in_proj"} <= set(graph.layers)


PRODUCTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "plain": lambda net, x: F.scaled_dot_product_attention(x, x, x),
    "by name": lambda net, x: F.scaled_dot_product_attention(query=x, key=x, value=x),
    "causal": lambda net, x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "scaled": lambda net, x: F.scaled_dot_product_attention(x, x, x, scale=0.2),
    "masked": lambda net, x: F.scaled_dot_product_attention(x, x, x, net.mask),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_scaled_products_are_opened(name: str) -> None:
    network = Rows(PRODUCTS[name])
    network.register_buffer("mask", 3 * torch.randn(ROWS, ROWS))
    _, found = check(network)
    assert found["matmul"] == 2 and found["softmax"] == 1


def test_what_is_dropped_of_attention_in_training_is_kept() -> None:
    def attend(net: Any, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if net.training else 0.0)

    graph, _ = check(Rows(attend))
    images = torch.randn(3, *SIZE)
    module = graph.module.train()
    assert not torch.equal(module(images), module(images))


def attend_by_weight(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Attend by functions alone, as torchvision's windows do."""
    images, rows, width = x.shape
    if rows % 2:
        raise ValueError("an odd number of rows")
    parts = F.linear(x, weight, bias).reshape(images, rows, 3, heads, width // heads)
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    mask = x.new_zeros((rows, rows))
    mask[: rows // 2, rows // 2 :] = -100.0
    weights = (q @ k.transpose(-2, -1) + mask).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(images, rows, width)


fx.wrap("attend_by_weight")


def test_functions_called_as_a_whole_are_entered_and_their_weights_are_layers() -> None:
    def attend(net: Any, x: Tensor) -> Tensor:
        return attend_by_weight(x, net.together.weight, net.together.bias, HEADS)

    graph, found = check(Rows(attend, together=nn.Linear(WIDTH, 3 * WIDTH)))
    assert "together" in graph.layers and graph.parameters.in_float == 0
    assert found["matmul"] == 2 and not found["attend_by_weight"]
    # Entered functions leave nothing behind that the next trace would stumble over.
    check(Rows(attend, together=nn.Linear(WIDTH, 3 * WIDTH)))


@pytest.mark.parametrize("bias", [None, "own", "another"])
def test_a_function_that_is_given_a_weight_is_its_layer(bias: str | None) -> None:
    def attend(net: Any, x: Tensor) -> Tensor:
        layer = net.layer
        given = {None: None, "own": layer.bias, "another": 2 * layer.bias}[bias]
        return F.linear(x, layer.weight, given)

    graph, found = check(Rows(attend, layer=nn.Linear(WIDTH, WIDTH)))
    name = "layer" if bias == "own" else "layer.without_bias"
    assert set(graph.layers) == {"cut", name, "head"}
    assert found["add"] == (bias == "another")


def drop_rows(x: Tensor, share: float, training: bool = True) -> Tensor:
    """Drop rows, in training alone, as stochastic depth does."""
    if not training or share == 0:
        return x
    return x * torch.empty(len(x), 1, 1).bernoulli_(1 - share) / (1 - share)


fx.wrap("drop_rows")


def test_what_is_dropped_by_entered_functions_is_dropped_in_training_alone() -> None:
    def attend(net: Any, x: Tensor) -> Tensor:
        x = attend_by_weight(x, net.together.weight, net.together.bias, HEADS)
        return x + drop_rows(x, 0.5, net.training)

    graph, _ = check(Rows(attend, together=nn.Linear(WIDTH, 3 * WIDTH)))
    assert not describe_training(graph.module)
    images = torch.randn(30, *SIZE)
    module = graph.module.train()
    assert not torch.equal(module(images), module(images))


def choose(x: Tensor) -> Tensor:
    """Do what depends on values."""
    return x if bool(x.detach().sum() > 0) else x + 1


fx.wrap("choose")


def test_a_function_that_cannot_be_entered_is_called_as_a_whole() -> None:
    _, found = check(Rows(lambda net, x: choose(x)))
    assert found["choose"] == 1
    assert choose.__module__ in sys.modules
