"""Data sets, their albumentations pipelines, and the sampler that makes augmentation repeatable."""

from visionattn.data.synthetic.digits import SyntheticDigits

from .coco import CocoDetection
from .collate import list_collate
from .detection import AnnotatedPicture, DetectionImages
from .digits import Digits
from .fashion_mnist import FashionMNIST
from .image_folder import ImageFolder
from .objects import Objects
from .pipeline import DetectionPipeline, Pipeline, SegmentationPipeline
from .sampler import SeededSampler
from .segmentation import ADE20K, ImageMaskFolder, SegmentedImages
from .voc import VOCDetection, VOCSegmentation

__all__ = [
    "ADE20K",
    "AnnotatedPicture",
    "CocoDetection",
    "DetectionImages",
    "DetectionPipeline",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "ImageMaskFolder",
    "Objects",
    "Pipeline",
    "SeededSampler",
    "SegmentationPipeline",
    "SegmentedImages",
    "SyntheticDigits",
    "VOCDetection",
    "VOCSegmentation",
    "list_collate",
]
