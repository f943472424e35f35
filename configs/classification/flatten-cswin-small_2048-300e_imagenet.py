# CSwin's recipe.
_base_ = ["./boat-cswin-tiny_2048-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_cswin_small", drop_path_rate=0.4))
