"""Replaces layers of existing models with normreg's, and restores them."""

from normreg.models import (  # noqa: F401  they register the layers they know
    diffusers,
    diffusers_adaptive,
    diffusers_adaptive_models,
    timm,
    torchvision,
    transformers,
    transformers_adaptive,
)
