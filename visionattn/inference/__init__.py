"""Prediction on images and videos with a registered network, a published checkpoint, or a config with its checkpoint.

for result in Predictor("va_resnet10n_cbam.digits")(["photo.jpg", "folder/"]):
    print(result.name, result.summary())
"""

from typing import Any

from visionattn.utils.lazy import import_name

_MODULES = {
    "Classification": "results",
    "Detection": "results",
    "FolderReport": "folder",
    "Network": "network",
    "Picture": "pictures",
    "Prediction": "results",
    "Predictor": "predictor",
    "ResultFolder": "folder",
    "Segmentation": "results",
    "Subject": "explaining",
    "find_images": "pictures",
    "list_pictures": "pictures",
    "load_network": "loading",
    "predict_to_folder": "folder",
    "read_records": "tables",
    "subject": "explaining",
    "write_tables": "tables",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    return import_name(__name__, _MODULES, name)
