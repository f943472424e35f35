# The recipe of CBAM's author for the released weights on ImageNet-1K (arXiv 1807.06521), 8 processes with 32 images
# each; triplet attention's is the same (arXiv 2010.03045). Published: top-1 77.62 %, top-5 93.95 % (README of the
# official repository).
_base_ = [
    "../_base_/models/imagenet.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/schedules/sgd_step30.py",
    "../_base_/default_runtime.py",
]
default_hooks = dict(logger=dict(interval=100))
variants = {"va_resnet*_cbam": {}, "va_resnet*_triplet": {}}
