"""Front-ends of backbones, by the names that configs use."""

from visionattn.plugins.featenhancer import FeatEnHancer

from .registry import FRONTENDS

__all__ = ["FeatEnHancer"]

FRONTENDS.register_module(module=FeatEnHancer)
