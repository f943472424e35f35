# Published: top1 83.0 %.
_base_ = ["./stm-swin-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_stm_halonet_tiny", drop_path_rate=0.2))
