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
_FLOAT32_NOISE = 1e-12
_PIECE = 2**21


def gram(feature: Tensor, *, centred: bool = True, columns: slice | None = None) -> Tensor:
    """Gram matrix of a feature, computed piece by piece.

    Products are float32 within a piece of some thousand columns (which fits the cache, and is long
    enough to keep the cores busy); pieces add up in float64. With
    `centred`, the mean over the images is taken off each column first, which changes nothing of a
    centred Gram matrix but its rounding error.

    Args:
        feature: n × …, any floating dtype and device.
        centred: whether the Gram matrix will be centred afterwards.
        columns: the part of the flattened feature to use (a rank's share); all of it where None.

    Returns:
        n × n, float64, on the device of `feature`.
    """
    flat = feature.reshape(feature.shape[0], -1)[:, columns or slice(None)]
    images, width = flat.shape
    piece = max(_PIECE // max(images, 1), 1024)
    total = torch.zeros(images, images, dtype=torch.float64, device=flat.device)
    energy_of_means = torch.zeros((), dtype=torch.float64, device=flat.device)
    for start in range(0, width, piece):
        part = flat[:, start : start + piece].float()
        if centred:
            means = part.mean(dim=0)
            energy_of_means += images * means.square().sum()
            part = part - means
        total += part @ part.T
    # What is left of a constant feature is the rounding of its mean, not a direction.
    return total * (total.trace() > _FLOAT32_NOISE * energy_of_means)


def inner_products(grams: Tensor, *, centred: bool = True, unbiased: bool = False) -> Tensor:
    """⟨K_i, K_j⟩_F of every pair of (centred) Gram matrices of one batch.

    Args:
        grams: L × n × n, float64.
        centred: centre on both sides first.
        unbiased: leave out the diagonals and scale, so that the expectation over batches is that
            of infinitely many images (HSIC₁ of Song et al. where centred).

    Returns:
        L × L, float64.

    Raises:
        ValueError: `unbiased` with fewer than four images.
    """
    images = grams.shape[-1]
    if unbiased and images < MINIMUM_UNBIASED_IMAGES:
        raise ValueError(f"the unbiased estimator needs 4 images in a batch, not {images}")
    if not unbiased:
        prepared, scale = (_centre(grams) if centred else grams), 1.0
    elif centred:
        prepared, scale = _centre_off_diagonal(grams), 1.0 / (images * (images - 3))
    else:
        prepared, scale = _off_diagonal(grams), 1.0 / (images * (images - 1))
    flat = prepared.flatten(1)
    return flat @ flat.T * scale


def normalise(products: Tensor) -> tuple[Tensor, list[int]]:
    """The orthogonality matrix from inner products (summed over batches).

    Estimates outside [0, 1] (rounding, or the unbiased estimator) are clipped. A feature that is
    the same for all images has no direction; it counts as redundant with every other (ORM = 1).

    Args:
        products: L × L, float64, symmetric.

    Returns:
        The L × L matrix with 1 on the diagonal, and the indices of the constant features.
    """
    squared = products.diagonal()
    constant = squared <= 0
    norms = torch.where(constant, torch.ones_like(squared), squared).sqrt()
    matrix = (products / norms[:, None] / norms[None, :]).clamp(0, 1)
    matrix = (matrix + matrix.T) / 2
    matrix[constant, :] = 1.0
    matrix[:, constant] = 1.0
    matrix.fill_diagonal_(1.0)
    return matrix, torch.nonzero(constant).flatten().tolist()


def _centre(grams: Tensor) -> Tensor:
    """H K H with H = I − 11ᵀ/n, for each matrix."""
    rows = grams.mean(dim=-1, keepdim=True)
    return grams - rows - rows.transpose(-1, -2) + rows.mean(dim=-2, keepdim=True)


def _off_diagonal(grams: Tensor) -> Tensor:
    return grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))


def _centre_off_diagonal(grams: Tensor) -> Tensor:
    """U-centring (Székely and Rizzo, 2014): ⟨A_K, A_L⟩/(n(n−3)) of the results is HSIC₁."""
    hollow, images = _off_diagonal(grams), grams.shape[-1]
    rows = hollow.sum(dim=-1, keepdim=True) / (images - 2)
    whole = hollow.sum(dim=(-1, -2), keepdim=True) / ((images - 1) * (images - 2))
    return _off_diagonal(hollow - rows - rows.transpose(-1, -2) + whole)
