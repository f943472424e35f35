"""Data sets, their albumentations pipelines, and the sampler that makes augmentation repeatable."""

from .digits import Digits
from .fashion_mnist import FashionMNIST
from .image_folder import ImageFolder
from .pipeline import Pipeline
from .sampler import SeededSampler

__all__ = ["Digits", "FashionMNIST", "ImageFolder", "Pipeline", "SeededSampler"]
