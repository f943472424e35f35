"""Data sets, their albumentations pipelines, and the sampler that makes augmentation reproducible.

Each is imported, and so registered, when it is first used. Data sets of one's own are classes registered with
mmengine's `DATASETS`, transforms of one's own subclasses of albumentations' registered with its `TRANSFORMS`, both in a
file that a config names in `custom_imports`.
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
    "DiscoveredData": "discovery",
    "FashionMNIST": "fashion_mnist",
    "ImageFolder": "image_folder",
    "ImageMaskFolder": "segmentation",
    "ImageReader": "image_reader",
    "Objects": "objects",
    "PictureDataset": "base",
    "Pipeline": "pipeline",
    "SeededSampler": "sampler",
    "SegmentationPipeline": "pipeline",
    "SegmentedImages": "segmentation",
    "SyntheticDigits": "synthetic.digits",
    "VOCDetection": "voc",
    "VOCSegmentation": "voc",
    "YOLODetection": "yolo",
    "check_dataset": "base",
    "discover": "discovery",
    "innermost_config": "base",
    "list_collate": "collate",
    "share_classes": "base",
    "stack_collate": "collate",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    return import_name(__name__, _MODULES, name)
