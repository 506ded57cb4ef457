"""Images varied at random: what happens to a single point of each."""

from __future__ import annotations

import torch
from kinds import draw_images
from torch import Tensor, nn

from ompq import trace, uniform
from PTQ import Settings, quantize_network
from PTQ.variation import vary_images

COUNT, HEIGHT, WIDTH = 400, 16, 24
ROW, COLUMN = 7, 5


def draw(seed: int) -> Tensor:
    """Images of one bright point each, varied."""
    images = torch.zeros(COUNT, 1, HEIGHT, WIDTH)
    images[:, 0, ROW, COLUMN] = 1
    return vary_images(images, torch.Generator().manual_seed(seed))


def test_images_are_mirrored_shifted_and_mixed() -> None:
    varied = draw(0)
    assert torch.allclose(varied.sum((1, 2, 3)), torch.ones(COUNT))
    whole = varied[varied.flatten(1).amax(1) == 1]
    mixed = varied[varied.flatten(1).amax(1) < 1]
    # Half are mixed, of which few have both points in the same place.
    assert abs(len(whole) - COUNT / 2) < 60
    assert all(image.count_nonzero() == 2 for image in mixed)
    assert float(mixed.flatten(1).amax(1).min()) >= 0.5
    points = whole.nonzero()[:, 2:].tolist()
    plain = [(row, column) for row, column in points if column < WIDTH // 2]
    turned = [(row, WIDTH - 1 - column) for row, column in points if column >= WIDTH // 2]
    assert abs(len(plain) - len(turned)) < 90
    for found in (plain, turned):
        assert {row for row, _ in found} == set(range(ROW - 2, ROW + 3))
        assert {column for _, column in found} == set(range(COLUMN - 3, COLUMN + 4))


def test_edges_are_repeated_where_nothing_was() -> None:
    images = torch.randn(8, 3, 1, 1).expand(-1, -1, 16, 16)
    varied = vary_images(images, torch.Generator().manual_seed(0), mix=False)
    assert torch.equal(varied, images)


def test_a_seed_gives_the_same_images_and_another_one_others() -> None:
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_small_and_single_images_pass() -> None:
    single = torch.randn(1, 3, 4, 4)
    varied = vary_images(single, torch.Generator().manual_seed(0))
    assert torch.allclose(varied, single) or torch.allclose(varied, single.flip(3))


class Directions(nn.Module):
    """A network that divides by how far each point is from the one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., 1:] - x[..., :-1]
        x = x / x.norm(dim=1, keepdim=True)
        return self.b(self.a(x).relu().mean((2, 3)))


def test_a_network_that_cannot_take_shifted_images_learns_from_them_as_they_are() -> None:
    torch.manual_seed(0)
    images, told = draw_images(64), list[str]()
    graph = trace(Directions().eval(), tuple(images.shape[1:]))
    settings = Settings(weight_iterations=20, act_iterations=10)
    _, reports = quantize_network(
        graph, uniform(graph.groups, 3, 8), images, settings, say=told.append
    )
    assert any(note.startswith("images are not varied: of images that are") for note in told)
    assert all(report.kept != "rounding (the loss was not finite)" for report in reports)
    assert any(report.loss_after < report.loss_before for report in reports)
