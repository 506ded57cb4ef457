"""A small residual network for small images: the demonstration's."""

from __future__ import annotations

from torch import Tensor, nn

from ompq.preprocess import Preprocess

PREPROCESS = Preprocess(input_size=32, resize=32)


class _Block(nn.Module):
    """A residual block: two 3×3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map n × inputs × h × w to n × outputs × h/stride × w/stride."""
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(branch + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network for images of 8 to 32 pixels: stem, three stages, pooling, classifier.

    Every stage has two residual blocks; at the default width there are 175 000 parameters.

    Args:
        num_classes: Number of classes.
        width: Number of channels of the first stage; each further stage doubles it.
    """

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        widths = [width, width, 2 * width, 4 * width]
        strides = (1, 2, 2)
        stages = zip(widths[:-1], widths[1:], strides, strict=True)
        self.stages = nn.Sequential(
            *(nn.Sequential(_Block(i, o, s), _Block(o, o, 1)) for i, o, s in stages)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images, n × 3 × h × w, to logits, n × classes."""
        return self.classifier(self.pool(self.stages(self.stem(x))).flatten(1))


def small_resnet(num_classes: int = 10) -> SmallResNet:
    """Build the network with its default width."""
    return SmallResNet(num_classes)
