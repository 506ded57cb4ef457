"""Networks with operations between layers that have an integer form of their own.

All take images of 3 × 16 × 16 and tell five classes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kinds import Net, conv, pooled
from torch import Tensor, nn
from torch.nn import functional as F


def make(
    body: Callable[[Net, Tensor], Tensor], outputs: int = 8, width: int = 8, **parts: nn.Module
) -> Net:
    """Make a network of a stem, a body that takes 8 channels of 8 × 8, and a classifier."""

    def forward(net: Net, x: Tensor) -> Tensor:
        out = body(net, F.relu(net.stem(x)))
        return net.head(pooled(out) if out.dim() == 4 else out)

    return Net(forward, stem=conv(3, width, 2), head=nn.Linear(outputs, 5), **parts)


class Parameters(nn.Module):
    """Numbers that values are multiplied by, or that are added to them."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        drawn = [torch.randn(shape) for shape in shapes]
        self.held = nn.ParameterList(drawn)

    def forward(self, number: int) -> Tensor:
        return self.held[number]


def prelu() -> nn.PReLU:
    activation = nn.PReLU(8)
    activation.weight.data.uniform_(-0.5, 0.8)
    return activation


def norm(kind: type[nn.BatchNorm1d] | type[nn.BatchNorm2d], size: int) -> nn.Module:
    made = kind(size)
    for tensor in (made.running_mean, made.weight.data, made.bias.data):
        assert tensor is not None
        tensor.normal_()
    assert made.running_var is not None
    made.running_var.uniform_(0.5, 2)
    return made


def excite(net: Net, x: Tensor) -> Tensor:
    """Multiply channels by a gate that is computed of their averages."""
    gate = net.widen(F.silu(net.narrow(x.mean((2, 3), keepdim=True))))
    return x * torch.sigmoid(gate)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def run_all(net: Net, x: Tensor) -> Tensor:
    x = F.hardswish(net.first(x))
    y = net.act(net.deep(torch.relu(net.norm(x))))
    gate = torch.sigmoid(net.widen(F.silu(net.narrow(y.mean((2, 3), keepdim=True)))))
    return x * net.scale(0) + y * gate


def squeeze() -> dict[str, nn.Module]:
    return {"narrow": nn.Conv2d(8, 4, 1), "widen": nn.Conv2d(4, 8, 1)}


def cross(net: Net, x: Tensor) -> Tensor:
    """Multiply what is known of rows by what is known of columns."""
    return net.a(x.amax(3, keepdim=True) * x.amax(2, keepdim=True))


class Attention(nn.Module):
    """Several heads that attend to tokens, in one of the ways that are written."""

    def __init__(
        self,
        way: str,
        width: int = 8,
        heads: int = 2,
        hide: Callable[[Tensor], Tensor] = lambda scores: scores,
    ) -> None:
        super().__init__()
        self.way, self.heads, self.hide = way, heads, hide
        self.norm, self.all, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.norm.weight.data.uniform_(0.5, 2)
        self.norm.bias.data.normal_()

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.all(self.norm(x)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scale = (width // self.heads) ** -0.5
        if self.way == "einsum":
            weights = torch.einsum("nhid,nhjd->nhij", q * scale, k).softmax(-1)
            y = torch.einsum("nhij,nhjd->nihd", weights, v)
        else:
            scores = self.hide(q * scale @ k.transpose(-2, -1))
            y = (scores.softmax(-1) @ v).transpose(1, 2)
        return x + self.out(y.reshape(n, length, width))


def transformer(way: str, hide: Callable[[Tensor], Tensor] = lambda scores: scores) -> Net:
    parts = {name: Attention(way, hide=hide) for name in "ab"}
    return make(lambda net, x: net.b(net.a(tokens(x))).mean(1), **parts)


# Whether a place comes after another one, of the 64 of a map of 8 × 8.
AFTER = torch.ones(64, 64).triu(1).bool()
# Ways to hide the scores of what comes after.
HIDING: dict[str, Callable[[Tensor], Tensor]] = {
    "filled": lambda scores: scores.masked_fill(AFTER, -torch.inf),
    "chosen": lambda scores: torch.where(AFTER, torch.tensor(-torch.inf), scores),
    "added": lambda scores: scores + torch.zeros(64, 64).masked_fill(AFTER, -torch.inf),
}


def grouped(groups: int) -> nn.GroupNorm:
    made = nn.GroupNorm(groups, 8)
    made.weight.data.uniform_(0.5, 2)
    made.bias.data.normal_()
    return made


class Token(nn.Module):
    """A token before all others, and a number for every place of a token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 65, 8) / 2)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(x.shape[0], -1, -1)
        return torch.cat([token, x], 1) + self.places


class OpenNorm(nn.Module):
    """A layer norm of channels, written out as means and a root."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.rand(size) + 0.5),
            nn.Parameter(torch.rand(size)),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(spread + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def soften(x: Tensor) -> Tensor:
    """Compute a softmax over channels, written out."""
    powers = torch.exp(x - x.amax(1, keepdim=True))
    return powers / powers.sum(1, keepdim=True)


def bend(x: Tensor) -> Tensor:
    """Compute a GELU by its approximation, written out."""
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def classify(net: Net, x: Tensor) -> Tensor:
    return net.b(net.token(tokens(net.a(x))))[:, 0]


def bilinear(net: Net, x: Tensor) -> Tensor:
    """Multiply what is known of every pair of channels, over all pixels."""
    x = net.a(x).flatten(2)
    return net.b(torch.bmm(x, net.c(x).transpose(1, 2)).flatten(1))


class ChannelNorm(nn.LayerNorm):
    """A norm over channels, which are not last."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


OPERATING: dict[str, Callable[[], nn.Module]] = {
    "all": lambda: make(
        run_all,
        first=conv(8, 8),
        norm=norm(nn.BatchNorm2d, 8),
        deep=conv(8, 8),
        act=prelu(),
        scale=Parameters((8, 1, 1)),
        **squeeze(),
    ),
    "prelu": lambda: make(
        lambda net, x: net.b(net.act(net.a(x))), a=conv(8, 8), b=conv(8, 8), act=prelu()
    ),
    "one slope": lambda: make(
        lambda net, x: net.b(net.act(net.a(x))), a=conv(8, 8), b=conv(8, 8), act=nn.PReLU(8)
    ),
    "norm": lambda: make(
        lambda net, x: net.a(net.norm(x)), a=conv(8, 8), norm=norm(nn.BatchNorm2d, 8)
    ),
    "norm of tokens": lambda: make(
        lambda net, x: net.b(net.norm(F.relu(net.a(x.mean((2, 3)))))).relu(),
        a=nn.Linear(8, 16),
        norm=norm(nn.BatchNorm1d, 16),
        b=nn.Linear(16, 8),
    ),
    "gate": lambda: make(lambda net, x: net.a(excite(net, x)), a=conv(8, 8), **squeeze()),
    "gate first": lambda: make(
        lambda net, x: net.a(torch.sigmoid(net.narrow(x.mean((2, 3), keepdim=True))) * x),
        a=conv(8, 8),
        narrow=nn.Conv2d(8, 8, 1),
    ),
    "gate of maps": lambda: make(
        lambda net, x: net.a(x * torch.sigmoid(net.narrow(x))),
        a=conv(8, 8),
        narrow=nn.Conv2d(8, 1, 1),
    ),
    "hard-swish": lambda: make(
        lambda net, x: net.b(F.hardswish(net.a(x))), a=conv(8, 8), b=conv(8, 8)
    ),
    "silu twice": lambda: make(
        lambda net, x: (lambda y: net.b(y) + y)(F.silu(net.a(x))), a=conv(8, 8), b=conv(8, 8)
    ),
    "last": lambda: make(lambda net, x: torch.sigmoid(net.a(x)), a=conv(8, 8)),
    "padded sigmoid": lambda: make(
        lambda net, x: net.b(F.pad(torch.sigmoid(F.pad(net.a(x), (1, 0, 2, 1))), (0, 1, 1, 0))),
        a=conv(8, 8),
        b=conv(8, 8),
    ),
    "table of choice": lambda: make(
        lambda net, x: net.b(F.gelu(F.max_pool2d(net.a(x), 3, 2, 1).clamp(-0.3, 0.6))),
        a=conv(8, 8),
        b=conv(8, 8),
    ),
    "layer scale": lambda: make(
        lambda net, x: (tokens(x) + net.a(tokens(x)) * net.scale(0)).mean(1),
        a=nn.Linear(8, 8),
        scale=Parameters((8,)),
    ),
    "scale of maps": lambda: make(
        lambda net, x: net.a(net.a(x).permute(0, 2, 3, 1).mul(net.scale(0)).permute(0, 3, 1, 2)),
        a=conv(8, 8),
        scale=Parameters((8,)),
    ),
    "positions": lambda: make(
        lambda net, x: net.b(net.a(x) + net.scale(0)),
        a=conv(8, 8),
        b=conv(8, 8),
        scale=Parameters((8, 8, 8)),
    ),
    "rows and channels": lambda: make(
        lambda net, x: net.b(F.relu(net.a(x)) * net.scale(0) - net.scale(1)),
        a=conv(8, 8),
        b=conv(8, 8),
        scale=Parameters((8, 1, 8), (8, 1)),
    ),
    "two maps": lambda: make(
        lambda net, x: net.b(x * F.relu(net.a(x))), a=conv(8, 8), b=conv(8, 8)
    ),
    "other order": lambda: make(
        lambda net, x: net.b(x.transpose(2, 3) * net.a(x).flip(1)), a=conv(8, 8), b=conv(8, 8)
    ),
    "rows and columns": lambda: make(cross, a=conv(8, 8)),
    "pieces": lambda: make(
        lambda net, x: net.b(torch.cat([x[:, :4] * torch.tanh(net.a(x)[:, 4:]), x[:, 4:]], 1)),
        a=conv(8, 8),
        b=conv(8, 8),
    ),
    "values and gates": lambda: make(
        lambda net, x: (lambda both: net.b(F.silu(both[0]) * both[1]).mean(1))(
            net.a(tokens(x)).chunk(2, -1)
        ),
        a=nn.Linear(8, 16),
        b=nn.Linear(8, 8),
    ),
    "attention": lambda: transformer("matmul"),
    "attention by einsum": lambda: transformer("einsum"),
    "class token": lambda: make(classify, a=conv(8, 8), token=Token(), b=Attention("matmul")),
    "bilinear": lambda: make(bilinear, a=conv(8, 8), c=nn.Linear(64, 64), b=nn.Linear(64, 8)),
    "root norm": lambda: make(
        lambda net, x: net.b(net.norm(net.a(tokens(x)))).mean(1),
        a=nn.Linear(8, 16),
        norm=nn.RMSNorm(16, eps=1e-5),
        b=nn.Linear(16, 8),
    ),
    "norm of channels": lambda: make(
        lambda net, x: x + net.b(net.norm(net.a(x))),
        a=conv(8, 8),
        norm=ChannelNorm(8),
        b=conv(8, 8),
    ),
    "norm of maps": lambda: make(
        lambda net, x: net.b(net.norm(x)), norm=nn.LayerNorm((8, 8, 8)), b=conv(8, 8)
    ),
    "norm of one group": lambda: make(
        lambda net, x: net.b(net.norm(net.a(x) + x)),
        a=conv(8, 8),
        norm=grouped(1),
        b=conv(8, 8),
    ),
    "norm of groups": lambda: make(
        lambda net, x: net.b(F.silu(net.norm(net.a(x)))),
        a=conv(8, 8),
        norm=grouped(2),
        b=conv(8, 8),
    ),
    "norm of pairs": lambda: make(
        lambda net, x: x + net.norm(net.a(x)).flip(1), a=conv(8, 8), norm=grouped(4)
    ),
    "softmax of channels": lambda: make(
        lambda net, x: net.b(net.a(x).softmax(1) * x), a=conv(8, 8), b=conv(8, 8)
    ),
    "softmax of pixels": lambda: make(
        lambda net, x: net.b(F.relu(x) * net.a(x).flatten(2).softmax(2).unflatten(2, (8, 8))),
        a=conv(8, 8),
        b=conv(8, 8),
    ),
    "average without padding": lambda: make(
        lambda net, x: net.b(
            F.avg_pool2d(net.a(x), 3, 2, 1, count_include_pad=False) - net.pool(x)
        ),
        a=conv(8, 8),
        pool=nn.AvgPool2d((3, 2), 2, (1, 0), count_include_pad=False),
        b=conv(8, 8),
    ),
    "norm written out": lambda: make(
        lambda net, x: x + net.b(net.norm(net.a(x))), a=conv(8, 8), norm=OpenNorm(8), b=conv(8, 8)
    ),
    "root norm written out": lambda: make(
        lambda net, x: net.b((y := net.a(x)) * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-6)),
        a=conv(8, 8),
        b=conv(8, 8),
    ),
    **{
        f"attention to what is before, {name}": lambda hide=hide: transformer("matmul", hide)
        for name, hide in HIDING.items()
    },
    "softmax written out": lambda: make(
        lambda net, x: net.b(soften(net.a(x)) * x), a=conv(8, 8), b=conv(8, 8)
    ),
    "gelu written out": lambda: make(
        lambda net, x: net.b(bend(net.a(x))), a=conv(8, 8), b=conv(8, 8)
    ),
}


def mobile() -> nn.Module:
    return pytest.importorskip("torchvision.models").mobilenet_v3_small(num_classes=10)


def vision() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    network = models.VisionTransformer(32, 8, 4, 4, 64, 128, num_classes=10)
    # It begins with a classifier of zeros.
    network.heads[-1].weight.data.normal_()
    return network


def swin() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    return models.SwinTransformer([2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=10)


# Of torchvision; these take images of 3 × 32 × 32 and tell ten classes.
LIBRARY: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v3_small": mobile,
    "VisionTransformer": vision,
    "SwinTransformer": swin,
}
