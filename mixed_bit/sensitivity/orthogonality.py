"""The orthogonality matrix (ORM) of a network's features.

With X_i (n × d_i) the flattened feature of group i for n images and K_i = X_i X_iᵀ its Gram matrix,
centred on both sides (H K H, H = I − 11ᵀ/n),

    ORM_ij = ⟨K_i, K_j⟩_F / (‖K_i‖_F ‖K_j‖_F),

OMPQ (arXiv:2109.07865), eq. 3; the centring is that of the published runs (linear CKA, Kornblith et
al., arXiv:1905.00414). Over several minibatches the inner products are the unbiased estimates of
Nguyen et al. (arXiv:2010.15327), eq. 3, averaged before the division.
"""

from __future__ import annotations

import torch
from torch import Tensor

MINIMUM_UNBIASED_IMAGES = 4
# Share of the means' energy below which what is left of a feature is the rounding of its means in
# float32 (6e-8, squared, with a margin).
_FLOAT32_NOISE = 1e-12
# Numbers in a piece: 8 MiB of float32.
_PIECE = 2**21


def compute_gram(feature: Tensor, *, centred: bool = True, columns: slice | None = None) -> Tensor:
    """Compute the Gram matrix of a feature, piece by piece.

    Products are float32 within a piece of some thousand columns (which fits the cache, and is long
    enough to keep the cores busy); pieces add up in float64. With
    `centred`, the mean over the images is taken off each column first, which changes nothing of a
    centred Gram matrix but its rounding error.

    Args:
        feature: Feature of n images, n × …, any floating dtype and device.
        centred: Whether the Gram matrix will be centred afterwards.
        columns: Columns of the flattened feature to use (a rank's share); all of them where None.

    Returns:
        n × n, float64, on the device of `feature`.

    >>> compute_gram(torch.tensor([[3.0, 0.0], [1.0, 2.0]]))
    tensor([[ 2., -2.],
            [-2.,  2.]], dtype=torch.float64)
    """
    flat = feature.reshape(feature.shape[0], -1)[:, columns or slice(None)]
    images, width = flat.shape
    piece = max(_PIECE // max(images, 1), 1024)
    total = torch.zeros(images, images, dtype=torch.float64, device=flat.device)
    energy_of_means = torch.zeros((), dtype=torch.float64, device=flat.device)
    for start in range(0, width, piece):
        values = flat[:, start : start + piece].float()
        if centred:
            # Before the product: a large common offset would drown the differences in float32.
            means = values.mean(dim=0)
            energy_of_means += images * means.square().sum()
            values = values - means
        total += values @ values.T
    # What is left of a constant feature is the rounding of its mean, not a direction.
    return total * (total.trace() > _FLOAT32_NOISE * energy_of_means)


def compute_inner_products(
    grams: Tensor, *, centred: bool = True, unbiased: bool = False
) -> Tensor:
    """Compute ⟨K_i, K_j⟩_F of every pair of (centred) Gram matrices of one batch.

    Args:
        grams: Gram matrices of L features, L × n × n, float64.
        centred: Whether to centre them on both sides first.
        unbiased: Whether to leave out the diagonals and scale, so that the expectation over
            batches is that of infinitely many images (HSIC₁ of Song et al. where centred).

    Returns:
        L × L, float64.

    Raises:
        ValueError: `unbiased` with fewer than four images.

    >>> grams = torch.stack([compute_gram(torch.tensor([[1.0], [-1.0]])) for _ in range(2)])
    >>> compute_inner_products(grams)
    tensor([[4., 4.],
            [4., 4.]], dtype=torch.float64)
    """
    images = grams.shape[-1]
    if unbiased and images < MINIMUM_UNBIASED_IMAGES:
        raise ValueError(f"the unbiased estimator needs 4 images in a batch, not {images}")
    if not unbiased:
        prepared, scale = (_centre(grams) if centred else grams), 1.0
    elif centred:
        prepared, scale = _centre_off_diagonal(grams), 1.0 / (images * (images - 3))
    else:
        prepared, scale = _clear_diagonal(grams), 1.0 / (images * (images - 1))
    flat = prepared.flatten(1)
    return flat @ flat.T * scale


def normalise(products: Tensor) -> tuple[Tensor, list[int]]:
    """Normalise inner products (summed over batches) to the orthogonality matrix.

    Estimates outside [0, 1] (rounding, or the unbiased estimator) are clipped. A feature that is
    equal for all images has no direction; it counts as redundant with every other (ORM = 1).

    Args:
        products: Inner products of L Gram matrices, L × L, float64, symmetric.

    Returns:
        The L × L matrix with 1 on the diagonal, and the indices of the constant features.

    >>> normalise(torch.tensor([[4.0, 3.0], [3.0, 9.0]]).double())
    (tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]], dtype=torch.float64), [])
    """
    squared = products.diagonal()
    constant = squared <= 0
    norms = torch.where(constant, torch.ones_like(squared), squared).sqrt()
    # One norm after the other: their product may overflow. The order costs the last digit's
    # symmetry, which the mean restores.
    matrix = (products / norms[:, None] / norms[None, :]).clamp(0, 1)
    matrix = (matrix + matrix.T) / 2
    matrix[constant, :] = 1.0
    matrix[:, constant] = 1.0
    matrix.fill_diagonal_(1.0)
    return matrix, torch.nonzero(constant).flatten().tolist()


def _centre(grams: Tensor) -> Tensor:
    """Compute H K H with H = I − 11ᵀ/n, for each matrix."""
    rows = grams.mean(dim=-1, keepdim=True)
    return grams - rows - rows.transpose(-1, -2) + rows.mean(dim=-2, keepdim=True)


def _clear_diagonal(grams: Tensor) -> Tensor:
    return grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))


def _centre_off_diagonal(grams: Tensor) -> Tensor:
    """Compute U-centred matrices A (Székely and Rizzo, 2014): ⟨A_K, A_L⟩/(n(n−3)) is HSIC₁."""
    hollow, images = _clear_diagonal(grams), grams.shape[-1]
    rows = hollow.sum(dim=-1, keepdim=True) / (images - 2)
    whole = hollow.sum(dim=(-1, -2), keepdim=True) / ((images - 1) * (images - 2))
    return _clear_diagonal(hollow - rows - rows.transpose(-1, -2) + whole)
