"""Networks of kinds that a toolkit gets wrong where it trusts names, or takes values for rows.

All take images of 3 × 16 × 16 and tell five classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, relu
from torch.nn.utils import prune

SHAPE = (3, 16, 16)
CLASSES = 5


class Net(nn.Module):
    """A network of named parts and a forward pass."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


class NormOverPositions(nn.Module):
    """A linear layer over patches, then a batch norm over channels, which are another dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.mix, self.norm, self.head = nn.Linear(16, 24), nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(relu(self.norm(self.mix(self.stem(x).flatten(2)))).mean(2))


class ScaledNorm(nn.BatchNorm2d):
    """A batch norm whose output is clipped."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(-0.5, 1.5)


class CentredLinear(nn.Linear):
    """A linear layer whose rows are centred on the way."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight - self.weight.mean(1, True), self.bias)


def build_hooked() -> nn.Module:
    """Build a network with a convolution whose output a hook scales."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.head(pooled(relu(net.norm(net.b(relu(net.a(x)))))))

    net = Net(forward, a=conv(3, 8, 2), b=conv(8, 8), norm=nn.BatchNorm2d(8), head=nn.Linear(8, 5))
    net.b.register_forward_hook(lambda _module, _inputs, output: 2 * output + 1)
    return net


class ComputedWeight(nn.Module):
    """A convolution by a function, of a weight that is normalised at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8, 2), nn.Linear(8, 5)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = conv2d(relu(self.stem(x)), self.kernel / self.kernel.norm(), padding=1)
        return self.head(pooled(relu(x)))


def build_pruned() -> nn.Module:
    """Build a network of which one layer is pruned by a mask, at every call anew."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.head(pooled(relu(net.a(relu(net.stem(x))))))

    net = Net(forward, stem=conv(3, 8, 2), a=conv(8, 8), head=nn.Linear(8, 5))
    prune.l1_unstructured(net.a, "weight", amount=0.5)
    return net


def build_tied() -> nn.Module:
    """Build a network of which two layers share a weight, and have biases of their own."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.head(pooled(relu(net.b(relu(net.mid(relu(net.a(relu(net.stem(x))))))))))

    net = Net(
        forward,
        stem=conv(3, 8, 2),
        a=conv(8, 8),
        mid=conv(8, 8),
        b=conv(8, 8),
        head=nn.Linear(8, 5),
    )
    net.b.weight = net.a.weight
    return net


def build_pieces() -> nn.Module:
    """Build a network that hands on the halves of a chunk, one by one and together."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        pieces = relu(net.stem(x)).chunk(2, dim=1)
        left = relu(net.a(pieces[0]))
        right = relu(net.b(left * pieces[1]))
        return net.head(pooled(torch.cat([torch.cat(pieces, dim=1), left, right], dim=1)))

    return Net(forward, stem=conv(3, 16, 2), a=conv(8, 8), b=conv(8, 8), head=nn.Linear(32, 5))


def build_windows() -> nn.Module:
    """Build a network that works on the windows of an image, window after window over the batch."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = relu(net.stem(x))
        windows = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(2, 3, 0, 1, 4, 5)
        x = relu(net.a(windows.reshape(4 * n, 8, 4, 4)))
        x = relu(net.b(x))
        return net.head(pooled(x).view(4, n, 8).mean(0))

    return Net(forward, stem=conv(3, 8, 2), a=conv(8, 8), b=conv(8, 8), head=nn.Linear(8, 5))


class Positions(nn.Module):
    """A bias that a small network makes of a table of coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = conv(3, 8, 2), conv(8, 8), nn.Linear(8, 5)
        self.inner, self.outer = nn.Linear(2, 4), nn.Linear(4, 8)
        self.register_buffer("table", torch.randn(64, 2))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.outer(relu(self.inner(self.table))).t().reshape(1, 8, 8, 8)
        x = relu(self.stem(x)) + bias
        return self.head(pooled(relu(self.a(x)) + bias))


class NormalisesItself(nn.Module):
    """Images normalised channel by channel inside, as torchvision's `transform_input` does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = conv(3, 8, 2), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        scaled = [x[:, k].unsqueeze(1) * (0.3 + 0.1 * k) + (0.1 * k - 0.2) for k in range(3)]
        return self.head(pooled(relu(self.a(relu(self.stem(torch.cat(scaled, dim=1)))))))


class MaskedPositions(nn.Module):
    """A mean of positions by their weights, of which an infinite mask takes some away."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.query, self.head = conv(3, 8, 2), nn.Conv2d(8, 1, 1), nn.Linear(8, 5)
        self.register_buffer("mask", torch.zeros(64).masked_fill(torch.arange(64) < 9, -torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.stem(x))
        weights = (self.query(x).flatten(2) + self.mask).softmax(-1)
        return self.head((x.flatten(2) * weights).sum(-1))


class Coordinates(nn.Module):
    """Images beside the coordinates of their pixels, once for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = conv(5, 8, 2), conv(8, 8), nn.Linear(8, 5)
        line = torch.linspace(-1, 1, 16)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"))
        self.register_buffer("grid", grid[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid.expand(x.size(0), -1, -1, -1)
        return self.head(pooled(relu(self.a(relu(self.stem(torch.cat([x, grid], 1)))))))


def build_slices() -> nn.Module:
    """Build a network that calls slices of one sequence of parts."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.parts[:2](x)
        return net.parts[4:](pooled(x + net.parts[2:4](x)))

    layers = (conv(3, 8, 2), nn.ReLU(), conv(8, 8), nn.ReLU(), nn.Linear(8, 5))
    return Net(forward, parts=nn.Sequential(*layers))


def build_convolutional() -> nn.Module:
    """Build a network whose classifier, the part that is defined first, is a convolution."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return avg_pool2d(net.head(relu(net.a(relu(net.stem(x))))), kernel_size=8)

    return Net(forward, head=nn.Conv2d(8, 5, 1), stem=conv(3, 8, 2), a=conv(8, 8))


class Unused(nn.Module):
    """A network with a layer that evaluation never calls, and a lonely parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = conv(3, 8, 2), conv(8, 8), nn.Linear(8, 5)
        self.auxiliary, self.scale = nn.Linear(8, 5), nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.a(relu(self.stem(x)))) * self.scale
        if self.training:
            return self.auxiliary(pooled(x))
        return self.head(pooled(max_pool2d(x, 2)))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "norm over positions": NormOverPositions,
    "norm of another code": lambda: Net(
        lambda net, x: net.head(pooled(net.norm(net.a(relu(net.stem(x)))))),
        stem=conv(3, 8, 2),
        a=conv(8, 8, bias=False),
        norm=ScaledNorm(8),
        head=nn.Linear(8, 5),
    ),
    "layer of another code": lambda: Net(
        lambda net, x: net.head(relu(net.centred(pooled(relu(net.a(relu(net.stem(x)))))))),
        stem=conv(3, 8, 2),
        a=conv(8, 8),
        centred=CentredLinear(8, 8),
        head=nn.Linear(8, 5),
    ),
    "layer with a hook": build_hooked,
    "computed weight": ComputedWeight,
    "pruned": build_pruned,
    "tied weights": build_tied,
    "pieces": build_pieces,
    "windows": build_windows,
    "positions": Positions,
    "normalises itself": NormalisesItself,
    "masked positions": MaskedPositions,
    "coordinates": Coordinates,
    "slices": build_slices,
    "convolutional": build_convolutional,
    "unused": Unused,
}


def build_kind(name: str) -> nn.Module:
    """Build a network of a kind, its norms with statistics that are not those of a new one."""
    torch.manual_seed(0)
    network = KINDS[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_(std=0.3)
    return network


def draw_images(count: int) -> Tensor:
    """Draw images of the networks' size."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))
