# As b0.
_base_ = ["./flatten-pvt-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_pvtv2_b2", drop_path_rate=0.1))
