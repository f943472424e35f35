# MobileNetV2 with coordinate attention on ImageNet-1K, 200 epochs with a cosine (arXiv 2103.02907); rate and weight
# decay are the usual ones for MobileNetV2. Published: top-1 74.30 %. The training script of ULSAM (arXiv 2006.15102) is
# not published: for it this recipe is ours.
_base_ = [
    "../_base_/models/imagenet.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/schedules/sgd_cosine.py",
    "../_base_/default_runtime.py",
]
model = dict(backbone=dict(model_name="va_mobilenetv2_100_coord"))
default_hooks = dict(logger=dict(interval=100))
variants = {"va_mobilenetv1_100_ulsam": {}, "va_mobilenetv2_100_ulsam": {}}
