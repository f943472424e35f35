# 200 epochs with a cosine (arXiv 2103.02907); rate and weight decay are the usual ones for MobileNetV2.
# Published: top1 74.30 % (arXiv 2103.02907).
_base_ = [
    "../_base_/models/imagenet.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/schedules/sgd_cosine.py",
    "../_base_/default_runtime.py",
]
model = dict(backbone=dict(model_name="va_mobilenetv2_100_coord"))
default_hooks = dict(logger=dict(interval=100))
