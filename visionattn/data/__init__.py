"""Data sets, their albumentations pipelines, and the sampler that makes augmentation repeatable.

Data sets of one's own are classes registered with mmengine's `DATASETS`, transforms of one's own subclasses of
albumentations' registered with its `TRANSFORMS`, both in a file that a config names in `custom_imports`.
"""

from visionattn.data.synthetic.digits import SyntheticDigits

from .base import PictureDataset, check_dataset, innermost_config, share_classes
from .coco import CocoDetection
from .collate import list_collate, stack_collate
from .detection import AnnotatedPicture, DetectionImages
from .digits import Digits
from .discovery import DiscoveredData, discover
from .fashion_mnist import FashionMNIST
from .image_folder import ImageFolder
from .objects import Objects
from .pipeline import DetectionPipeline, Pipeline, SegmentationPipeline
from .sampler import SeededSampler
from .segmentation import ADE20K, ImageMaskFolder, SegmentedImages
from .voc import VOCDetection, VOCSegmentation
from .yolo import YOLODetection

__all__ = [
    "ADE20K",
    "AnnotatedPicture",
    "CocoDetection",
    "DetectionImages",
    "DetectionPipeline",
    "Digits",
    "DiscoveredData",
    "FashionMNIST",
    "ImageFolder",
    "ImageMaskFolder",
    "Objects",
    "PictureDataset",
    "Pipeline",
    "SeededSampler",
    "SegmentationPipeline",
    "SegmentedImages",
    "SyntheticDigits",
    "VOCDetection",
    "VOCSegmentation",
    "YOLODetection",
    "check_dataset",
    "discover",
    "innermost_config",
    "list_collate",
    "share_classes",
    "stack_collate",
]
