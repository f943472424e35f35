# The paper's recipe, arXiv 1807.06521: 8 processes with 32 images each.
_base_ = [
    "../_base_/models/resnet50_cbam.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/schedules/sgd_step_90e.py",
    "../_base_/default_runtime.py",
]
default_hooks = dict(logger=dict(interval=100))
