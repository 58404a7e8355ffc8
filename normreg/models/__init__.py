"""Replaces layers of existing models with normreg's, and restores them."""

from normreg.models import diffusers, diffusers_adaptive, timm, torchvision, transformers  # noqa: F401  they register the layers they know
