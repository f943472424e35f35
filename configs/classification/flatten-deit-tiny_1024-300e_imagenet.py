# DeiT's recipe; no official code of this host.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_deit_tiny", drop_path_rate=0.1))
