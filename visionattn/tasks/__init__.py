"""Networks with their losses, as mmengine trains them."""

from .classifier import Classifier

__all__ = ["Classifier"]
