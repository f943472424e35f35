# The common recipe; not a published network.
_base_ = ["./stm-swin-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_stm_flatten_tiny", drop_path_rate=0.2))
