# Published: top1 83.7 %. The authors saw NaN under mixed precision with this drop path rate.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_twins_svt_large", drop_path_rate=0.5))
