# The recipe of the author's released weights (arXiv 1807.06521): 8 processes with 32 images each.
# Published: top1 77.62 %, top5 93.95 % (README of the official repository).
_base_ = [
    "../_base_/models/imagenet.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/schedules/sgd_step30.py",
    "../_base_/default_runtime.py",
]
default_hooks = dict(logger=dict(interval=100))
