"""Data sets, their albumentations pipelines, and the sampler that makes augmentation repeatable."""

from .collate import list_collate
from .digits import Digits
from .fashion_mnist import FashionMNIST
from .image_folder import ImageFolder
from .objects import Objects
from .pipeline import DetectionPipeline, Pipeline, SegmentationPipeline
from .sampler import SeededSampler
from .scenes import DigitScenes

__all__ = [
    "DetectionPipeline",
    "DigitScenes",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "Objects",
    "Pipeline",
    "SeededSampler",
    "SegmentationPipeline",
    "list_collate",
]
