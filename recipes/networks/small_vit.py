"""A small vision transformer for grey images of 28 × 28."""

from __future__ import annotations

from timm.models import VisionTransformer


def small_vit(num_classes: int = 10) -> VisionTransformer:
    """Build a ViT (arXiv:2010.11929): 4 blocks of width 64 on patches of 4 × 4, a class token.

    Args:
        num_classes: Classes of the classifier.
    """
    return VisionTransformer(
        img_size=28,
        patch_size=4,
        in_chans=1,
        num_classes=num_classes,
        embed_dim=64,
        depth=4,
        num_heads=4,
    )
