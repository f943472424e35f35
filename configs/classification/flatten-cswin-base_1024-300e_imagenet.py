# FLatten-CSwin's base size on ImageNet-1K by CSwin's recipe.
_base_ = ["./boat-cswin-base_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_cswin_base", drop_path_rate=0.5))
custom_hooks = [dict(type="EMAHook", momentum=1.8e-4, update_buffers=True)]
