# DeiT's recipe; the paper's is not known.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_lkca_vit_tiny", drop_path_rate=0.1))
