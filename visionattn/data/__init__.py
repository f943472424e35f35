"""Data sets, their albumentations pipelines, and the sampler that makes augmentation repeatable.

Each is imported, and so registered, when it is first used.
"""

from typing import Any

from visionattn.utils.lazy import import_name

_MODULES = {
    "ADE20K": "segmentation",
    "AnnotatedPicture": "detection",
    "CocoDetection": "coco",
    "DetectionImages": "detection",
    "DetectionPipeline": "pipeline",
    "Digits": "digits",
    "FashionMNIST": "fashion_mnist",
    "ImageFolder": "image_folder",
    "ImageMaskFolder": "segmentation",
    "Objects": "objects",
    "Pipeline": "pipeline",
    "SeededSampler": "sampler",
    "SegmentationPipeline": "pipeline",
    "SegmentedImages": "segmentation",
    "SyntheticDigits": "synthetic.digits",
    "VOCDetection": "voc",
    "VOCSegmentation": "voc",
    "list_collate": "collate",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    return import_name(__name__, _MODULES, name)
