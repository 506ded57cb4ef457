"""ResNets for images of 32 × 32 with shortcuts that have no weights (He et al., option A)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu


class Shortcut(nn.Module):
    """Take every other row and column, and pad the channels with zeros on both sides.

    Args:
        channels: Channels of the output, twice those of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return n × channels × height / 2 × width / 2."""
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.channels // 4, self.channels // 4))


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        keeps = stride == 1 and inputs == channels
        self.shortcut: nn.Module = nn.Sequential() if keeps else Shortcut(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three groups of blocks with 16, 32 and 64 channels, and a classifier.

    Args:
        blocks: Blocks of each group.
        num_classes: Number of classes.
    """

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _build_group(16, 16, blocks, 1)
        self.layer2 = _build_group(16, 32, blocks, 2)
        self.layer3 = _build_group(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, n × classes, of images n × 3 × 32 × 32."""
        out = relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(avg_pool2d(out, out.shape[3]).flatten(1))


def _build_group(inputs: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10) -> nn.Module:
    """Build ResNet-20; weights: akamaster/pytorch_resnet_cifar10, `resnet20-12fca82f.th`."""
    return ResNet(3, num_classes)


def resnet56(num_classes: int = 10) -> nn.Module:
    """Build ResNet-56; weights: akamaster/pytorch_resnet_cifar10, `resnet56-4bfd9763.th`."""
    return ResNet(9, num_classes)
