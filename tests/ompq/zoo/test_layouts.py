"""Every checkpoint layout gives the logits of the network that it was saved from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from ompq.errors import OmpqError
from ompq.zoo import load_network

Randomise = Callable[[nn.Module], nn.Module]
State = dict[str, Tensor]
CLASSES = 7


def _renamed(module: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in module.state_dict().items():
        yield f"{name}.{key}", value


def _leaves(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if not list(m.children())]


def brecq_mobilenet(network: nn.Module) -> State:
    """Every block's `conv` as one flat sequence, activations counted too."""
    state: State = {}
    for index, block in enumerate(network.features):
        inner = hasattr(block, "conv")
        for position, leaf in enumerate(_leaves(block)):
            name = f"features.{index}.{'conv.' if inner else ''}{position}"
            state.update(_renamed(leaf, name))
    state.update(_renamed(network.classifier[1], "classifier.1"))
    return state


def paper_mobilenet(network: nn.Module) -> State:
    """Every convolution and its batch norm as `conv` and `bn` of a numbered part."""
    state: State = {}
    for index, block in enumerate(network.features):
        leaves = [leaf for leaf in _leaves(block) if leaf.state_dict()]
        for position, leaf in enumerate(leaves):
            part = f"conv.{position // 2}." if hasattr(block, "conv") else ""
            kind = "conv" if isinstance(leaf, nn.Conv2d) else "bn"
            state.update(_renamed(leaf, f"features.{index}.{part}{kind}"))
    state.update(_renamed(network.classifier[1], "classifier.0"))
    return state


def paper_resnet(network: nn.Module) -> State:
    state = dict([*_renamed(network.conv1, "conv1.conv"), *_renamed(network.bn1, "conv1.bn")])
    state.update(_renamed(network.fc, "fc"))
    for name, block in network.named_modules():
        for number in range(1, 4):
            if name and hasattr(block, f"bn{number}"):
                state.update(_renamed(getattr(block, f"conv{number}"), f"{name}.conv{number}.conv"))
                state.update(_renamed(getattr(block, f"bn{number}"), f"{name}.conv{number}.bn"))
        if getattr(block, "downsample", None) is not None:
            state.update(_renamed(block.downsample[0], f"{name}.downsample.conv"))
            state.update(_renamed(block.downsample[1], f"{name}.downsample.bn"))
    return state


def lite(network: nn.Module) -> State:
    """One running number for the blocks of all stages, and names of the layers' roles."""
    names = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
    norms = {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    first_names = {"conv_dw": "_depthwise_conv", "conv_pw": "_project_conv"}
    first_norms = {"bn1": "_bn1", "bn2": "_bn2"}
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    state: State = {}
    for ours, theirs in {**outer, "classifier": "_fc"}.items():
        state.update(_renamed(getattr(network, ours), theirs))
    for number, block in enumerate(block for stage in network.blocks for block in stage):
        first = not hasattr(block, "conv_pwl")
        for ours, theirs in ((first_names | first_norms) if first else (names | norms)).items():
            state.update(_renamed(getattr(block, ours), f"_blocks.{number}.{theirs}"))
    return state


def with_first_projection(network: nn.Module) -> nn.Module:
    """ResNet-18 as the paper's: a projection shortcut in layer1 too."""
    network.layer1[0].downsample = nn.Sequential(
        nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64)
    )
    return network


def check(
    path: Path,
    name: str,
    state: State,
    reference: nn.Module,
    size: int = 64,
    classes: int = CLASSES,
) -> str:
    """Load `state` from a file and compare logits; returns where the weights came from."""
    file = path / "w.pth"
    torch.save({"state_dict": state}, file)
    network = load_network(name, path=file)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network.module(images), reference(images), rtol=1e-4, atol=1e-4)
    assert network.num_classes == classes
    assert not network.module.training
    return network.source


def test_torchvision(tmp_path: Path, randomise: Randomise) -> None:
    reference = randomise(models.resnet18(num_classes=CLASSES))
    source = check(tmp_path, "resnet18", reference.state_dict(), reference)
    assert "own names" in source


def test_torchvision_without_counters_and_in_half_precision(
    tmp_path: Path, randomise: Randomise
) -> None:
    reference = randomise(models.resnet18(num_classes=CLASSES).half().float())
    state = {k: v for k, v in reference.state_dict().items() if "num_batches" not in k}
    reference.load_state_dict({k: v.half() for k, v in state.items()}, strict=False)
    check(tmp_path, "resnet18", {k: v.half() for k, v in state.items()}, reference)


def test_an_attribute_around_the_network(tmp_path: Path, randomise: Randomise) -> None:
    reference = randomise(models.resnet18(num_classes=CLASSES))
    state = {f"backbone.{key}": value for key, value in reference.state_dict().items()}
    check(tmp_path, "resnet18", state, reference)


def test_projection_in_layer1_under_torchvisions_names(
    tmp_path: Path, randomise: Randomise
) -> None:
    reference = randomise(with_first_projection(models.resnet18(num_classes=CLASSES)))
    source = check(tmp_path, "resnet18", reference.state_dict(), reference)
    assert "projection shortcut in layer1.0" in source


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_the_papers_resnets(tmp_path: Path, randomise: Randomise, name: str) -> None:
    network = models.get_model(name, num_classes=CLASSES)
    if network.layer1[0].downsample is None:
        with_first_projection(network)
    reference = randomise(network)
    assert "the paper's ResNets" in check(tmp_path, name, paper_resnet(reference), reference)


def test_the_papers_mobilenet(tmp_path: Path, randomise: Randomise) -> None:
    reference = randomise(models.mobilenet_v2(num_classes=CLASSES))
    state = paper_mobilenet(reference)
    assert "features.1.conv.0.conv.weight" in state
    assert "the paper's" in check(tmp_path, "mobilenetv2", state, reference)


def test_brecqs_mobilenet(tmp_path: Path, randomise: Randomise) -> None:
    reference = randomise(models.mobilenet_v2(num_classes=CLASSES))
    state = brecq_mobilenet(reference)
    assert {"features.1.conv.0.weight", "features.17.conv.7.weight"} <= state.keys()
    assert "BRECQ" in check(tmp_path, "mobilenetv2", state, reference)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_timms_resnets(tmp_path: Path, randomise: Randomise, name: str) -> None:
    timm = pytest.importorskip("timm")
    reference = randomise(timm.create_model(name, num_classes=CLASSES))
    check(tmp_path, name, reference.state_dict(), reference)


def test_timms_mobilenet_as_torchvisions(tmp_path: Path, randomise: Randomise) -> None:
    timm = pytest.importorskip("timm")
    reference = randomise(timm.create_model("mobilenetv2_100", num_classes=CLASSES))
    check(tmp_path, "mobilenetv2", reference.state_dict(), reference)


@pytest.mark.parametrize("kind", [1, 4])
def test_lites_of_every_depth(tmp_path: Path, randomise: Randomise, kind: int) -> None:
    timm = pytest.importorskip("timm")
    reference = randomise(timm.create_model(f"tf_efficientnet_lite{kind}", num_classes=CLASSES))
    source = check(tmp_path, f"efficientnet_lite{kind}", lite(reference), reference)
    assert "efficientnet-lite-pytorch's names" in source


SHALLOW = """\
from torchvision.models import MobileNetV2

def make(num_classes=3):
    rows = [[1, 16, 1, 1], [6, 24, 2, 2], [1, 24, 2, 1], [6, 32, 3, 2]]
    return MobileNetV2(num_classes, width_mult=0.5, inverted_residual_setting=rows)
"""


def timm_mobilenet(network: nn.Module) -> State:
    """Every block by stage and unit, its layers by their roles; two blocks lack the expansion."""
    state: State = {}
    first, last = network.features[0], network.features[-1]
    for module, name in (
        (first[0], "conv_stem"),
        (first[1], "bn1"),
        (last[0], "conv_head"),
        (last[1], "bn2"),
        (network.classifier[1], "classifier"),
    ):
        state.update(_renamed(module, name))
    places = ["0.0", "1.0", "1.1", "2.0", "2.1", "3.0", "3.1", "3.2"]
    blocks = [block for block in network.features if hasattr(block, "conv")]
    for place, block in zip(places, blocks, strict=True):
        leaves = [leaf for leaf in _leaves(block) if leaf.state_dict()]
        names = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
        if len(leaves) == 4:
            names = ["conv_dw", "bn1", "conv_pw", "bn2"]
        for leaf, name in zip(leaves, names, strict=True):
            state.update(_renamed(leaf, f"blocks.{place}.{name}"))
    return state


@pytest.mark.parametrize("rename", [timm_mobilenet, paper_mobilenet, brecq_mobilenet])
def test_mobilenets_of_another_depth(
    tmp_path: Path, randomise: Randomise, rename: Callable[[nn.Module], State]
) -> None:
    (tmp_path / "shallow.py").write_text(SHALLOW)
    name = f"{tmp_path / 'shallow.py'}:make"
    reference = randomise(load_network(name, num_classes=CLASSES).module)
    assert "MobileNetV2" in check(tmp_path, name, rename(reference), reference)


@pytest.mark.parametrize("name", ["convnext_atto", "deit_tiny_patch16_224"])
def test_timms_own(tmp_path: Path, name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    reference = timm.create_model(name, num_classes=CLASSES).eval()
    check(tmp_path, name, reference.state_dict(), reference, size=224)


@pytest.mark.parametrize(
    ("ours", "theirs", "size", "note"),
    [
        ("resnet18", "resnet18", 64, "pytorchcv"),
        ("resnet34", "resnet34", 64, "pytorchcv"),
        ("resnet50", "resnet50", 64, "strides on the first 1×1"),
        ("mobilenetv2", "mobilenetv2_w1", 64, "expansion in the first block"),
        ("mobilenetv2", "mobilenetv2b_w1", 64, "its bias zero"),
        ("inceptionv3", "inceptionv3", 107, "pytorchcv"),
    ],
)
def test_pytorchcvs(
    tmp_path: Path, randomise: Randomise, ours: str, theirs: str, size: int, note: str
) -> None:
    provider = pytest.importorskip("pytorchcv.model_provider")
    reference = randomise(provider.get_model(theirs, num_classes=CLASSES))
    reference.features.final_pool = nn.AdaptiveAvgPool2d(1)
    assert note in check(tmp_path, ours, reference.state_dict(), reference, size)


def test_pytorchcvs_network_under_its_own_names(tmp_path: Path, randomise: Randomise) -> None:
    provider = pytest.importorskip("pytorchcv.model_provider")
    reference = randomise(provider.get_model("resnet20_cifar100"))
    check(tmp_path, "pytorchcv:resnet20_cifar10", reference.state_dict(), reference, 32, 100)


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_auxiliary_classifiers_are_left_out(
    tmp_path: Path, randomise: Randomise, name: str, auxiliary: bool
) -> None:
    reference = randomise(
        models.get_model(
            name, weights=None, num_classes=CLASSES, aux_logits=auxiliary, init_weights=False
        )
    )
    source = check(tmp_path, name, reference.state_dict(), reference, size=107)
    assert ("auxiliary classifiers left out" in source) == auxiliary


class TestMisfit:
    @pytest.fixture
    def state(self) -> State:
        torch.manual_seed(0)
        return load_network("small_resnet", num_classes=CLASSES).module.state_dict()

    def load(self, path: Path, state: State, num_classes: int | None = None) -> None:
        torch.save(state, path / "w.pth")
        load_network("small_resnet", path=path, num_classes=num_classes)

    def test_missing_and_unexpected(self, tmp_path: Path, state: State) -> None:
        state["stem.9.weight"] = state.pop("stem.0.weight")
        with pytest.raises(OmpqError) as caught:
            self.load(tmp_path, state)
        assert "1 are missing (stem.0.weight)" in str(caught.value)
        assert "1 are unexpected (stem.9.weight)" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_shapes(self, tmp_path: Path, state: State) -> None:
        state["stem.0.weight"] = state["stem.0.weight"][:, :1]
        with pytest.raises(OmpqError, match=r"stem\.0\.weight is 16×1×3×3, not 16×3×3×3"):
            self.load(tmp_path, state)

    def test_another_network_in_another_layout(self, tmp_path: Path) -> None:
        torch.save(paper_resnet(models.resnet34()), tmp_path / "w.pth")
        with pytest.raises(OmpqError, match="the paper's ResNets come closest"):
            load_network("resnet18", path=tmp_path)

    def test_number_of_classes(self, tmp_path: Path, state: State) -> None:
        self.load(tmp_path, state, CLASSES)
        with pytest.raises(OmpqError, match=f"`num_classes` 12 contradicts .* {CLASSES} classes"):
            self.load(tmp_path, state, 12)

    def test_nan_is_named_by_its_layer(self, tmp_path: Path, state: State) -> None:
        state["stages.1.0.conv2.weight"][0, 0, 0, 0] = float("nan")
        with pytest.raises(OmpqError, match=r"stages\.1\.0\.conv2\.weight holds NaN"):
            self.load(tmp_path, state)
