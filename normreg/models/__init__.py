"""Models that exist: which of their layers become normreg's, and back."""

from normreg.models import timm, torchvision, transformers  # noqa: F401  they register the layers they know
