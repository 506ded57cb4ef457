"""Which candidate scales can be the best for a row of values, by bounds cheaper than powers.

In units of a row's widest scale, all rows with one zero point have one set of candidates. So the
error f(v) = |v − v̂|^p of every candidate is tabled once, at the nodes of a fine mesh. A row is then
two counts per cell of the mesh: its values, and how far these lie into the cell. They give the sum
of the piecewise linear interpolant of f over the row, for all candidates by one matrix product.
Between two nodes f is convex and differs from the interpolant by at most h²/8 · max f'', except
where rounding jumps, by at most h · max |f'| there. Bounds and errors are summed alike.

With few values, or many zero points, these tables would cost more than they save. Then squares
decide: by Hölder's inequality Σ|e|^p ≥ n (Σe²/n)^(p/2) for p ≥ 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ompq.quantizers.affine import QuantParams

# Cells per widest scale, and at most in all on either side of zero.
_CELLS, _MOST_CELLS = 128, 4096
# A node of a table costs as much as so many values that squares are taken of.
_NODE_COST = 16
# Table entries, or values, at once.
_PIECE = 2**20
# Sums are rounded; a candidate this close above the least is not ruled out.
_CAUTION = 1e-3


@torch.no_grad()
def contenders(rows: Tensor, grids: QuantParams, shrink: Tensor, p: float) -> Tensor:
    """Find the candidates of each row that may have the least Σ|w − ŵ|^p; the best is among them.

    Args:
        rows: Values, c × n, float32.
        grids: Candidates, scale and zero point c × steps; the scale of step k is `shrink[k]` times
            that of step 0.
        shrink: Share of the range that each step covers; 1 at first, then smaller.
        p: Exponent of the error, at least 2.

    Returns:
        Whether each candidate may be the best: bool, c × steps.
    """
    unit = grids.scale[:, 0]
    # Scales at the smallest there is, and zero points that rounding moved, fit no common table.
    regular = (grids.zero_point == grids.zero_point[:, :1]).all(dim=1)
    regular &= (grids.scale[:, -1] / unit - shrink[-1]).abs() < _CAUTION
    zero_points = grids.zero_point[:, 0]
    reach = grids.high - grids.low
    half = min(_MOST_CELLS, _CELLS * (reach + 1))
    known = zero_points[regular].unique().tolist()
    if _NODE_COST * (2 * half + 1) * len(known) > rows.numel():
        return _by_squares(rows, grids, p)
    alive = torch.ones_like(grids.scale, dtype=torch.bool)
    mesh = _Mesh(half, half / reach)
    per_piece = max(1, _PIECE // (2 * half))
    for zero_point in known:
        nodes, slack = _tables(mesh, shrink, grids.low - zero_point, grids.high - zero_point, p)
        (which,) = torch.where(regular & (zero_points == zero_point))
        for some in which.split(per_piece):
            weights, counts = _histogram(rows[some] / unit[some, None], mesh)
            estimate, doubt = weights @ nodes, counts @ slack
            least = (estimate + doubt).amin(dim=1, keepdim=True)
            alive[some] = estimate - doubt <= least * (1 + _CAUTION)
    return alive


class RoundingErrors:
    """Errors of rounding, in units of the scales.

    They are computed in two buffers: fresh memory would cost more than the arithmetic.

    Args:
        rows: Values of the shape, dtype and device of the largest set that is rounded, c × n.
        low: Smallest integer.
        high: Largest integer.
    """

    def __init__(self, rows: Tensor, low: int, high: int) -> None:
        self._position, self._error = torch.empty_like(rows), torch.empty_like(rows)
        self._low, self._high = float(low), float(high)

    def __call__(self, rows: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the errors of c' × n values with c' scales and zero points.

        They are c' × n and valid until the next call.
        """
        position, error = self._position[: len(rows)], self._error[: len(rows)]
        torch.mul(rows, (1 / scale)[:, None], out=position).add_(zero_point[:, None])
        return torch.round(position, out=error).clamp_(self._low, self._high).sub_(position)


def sum_of_powers(errors: Tensor, p: float) -> Tensor:
    """Return Σ|e|^p of each row, by logarithms, which are faster than powers; spoils `errors`."""
    return errors.abs_().log2_().mul_(p).exp2_().sum(dim=1)


def _by_squares(rows: Tensor, grids: QuantParams, p: float) -> Tensor:
    alive = torch.empty_like(grids.scale, dtype=torch.bool)
    count = rows.shape[1]
    for some in torch.arange(len(rows), device=rows.device).split(max(1, _PIECE // count)):
        values, scale, zero_point = rows[some], grids.scale[some], grids.zero_point[some].float()
        errors_of = RoundingErrors(values, grids.low, grids.high)
        squares = [
            errors_of(values, scale[:, step], zero_point[:, step]).square_().sum(dim=1)
            for step in range(scale.shape[1])
        ]
        bound = count * (torch.stack(squares, dim=1) / count) ** (p / 2) * scale**p
        first = torch.arange(len(some), device=rows.device), bound.argmin(dim=1)
        errors = errors_of(values, scale[first], zero_point[first])
        least = sum_of_powers(errors, p) * scale[first] ** p
        alive[some] = bound <= least[:, None] * (1 + _CAUTION)
    return alive


@dataclass(frozen=True)
class _Mesh:
    """A mesh of 2 · `half` cells around zero, `density` to the unit."""

    half: int
    density: float


def _tables(
    mesh: _Mesh, shrink: Tensor, lowest: int, highest: int, p: float
) -> tuple[Tensor, Tensor]:
    """Compute f at the nodes, and per cell the most that its interpolant errs by: … × steps.

    `lowest` and `highest` bound the multiples of the scale that a value may be rounded to.
    """
    nodes = torch.arange(-mesh.half, mesh.half + 1, device=shrink.device) / mesh.density
    scale = shrink[:, None]
    position = nodes / scale
    rounded = position.round().clamp_(lowest, highest)
    distance = position.sub_(rounded).abs_()
    error = distance.log2().mul_(p).exp2_()
    largest = torch.maximum(distance[:, 1:], distance[:, :-1])
    width = 1 / mesh.density / scale
    curved = largest.pow(p - 2).mul_(p * width)
    jumps = rounded[:, 1:] != rounded[:, :-1]
    slack = torch.where(jumps, curved * largest, curved * ((p - 1) / 8 * width))
    unit = scale**p
    return error.mul_(unit).t().contiguous(), slack.mul_(unit).t().contiguous()


def _histogram(rows: Tensor, mesh: _Mesh) -> tuple[Tensor, Tensor]:
    """Count c × n values in units of the widest scale: weights of nodes, counts of cells.

    Both are float32, c × nodes and c × cells.
    """
    count, cells = len(rows), 2 * mesh.half
    position = rows.mul_(mesh.density).add_(mesh.half).nan_to_num_()
    cell = position.floor().clamp_(0, cells - 1)
    into = position.sub_(cell).flatten()
    offset = torch.arange(count, device=rows.device)[:, None] * cells
    index = (cell.int() + offset.int()).flatten()
    counts = torch.bincount(index, minlength=count * cells).view(count, cells).float()
    right = torch.bincount(index, into, minlength=count * cells).view(count, cells).float()
    weights = torch.zeros(count, cells + 1, device=rows.device)
    weights[:, :-1] += counts - right
    weights[:, 1:] += right
    return weights, counts
