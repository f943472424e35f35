"""The data layouts that `visionattn.data.discovery` knows: each examines a path and describes what it finds."""

from .class_folders import class_folders
from .coco import coco
from .common import TASKS, Layout
from .masks import masks
from .voc import voc
from .yolo import yolo

__all__ = ["LAYOUTS", "TASKS", "Layout"]

# In this order: a folder of classes may look like any other.
LAYOUTS = (yolo, coco, voc, masks, class_folders)
