# BOAT-CSwin's base size on ImageNet-1K, as the tiny one at half the batch and rate, with more decay and stochastic
# depth.
_base_ = ["./boat-cswin-tiny_2048-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_boat_cswin_base", drop_path_rate=0.5))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.1))
auto_scale_lr = dict(base_batch_size=1024)
custom_hooks = [dict(type="EMAHook", momentum=8e-5, update_buffers=True)]
