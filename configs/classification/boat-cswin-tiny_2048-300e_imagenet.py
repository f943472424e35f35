# The recipe of BOAT-CSwin's authors on ImageNet-1K (arXiv 2201.13027), CSwin's: 256 images on each of 8 GPUs, averaged
# weights, no clipping. For FLatten-CSwin too (arXiv 2308.00442), published top-1 accuracy of the tiny one 83.1 %.
_base_ = ["./boat-swin-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_boat_cswin_tiny", drop_path_rate=0.2))
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=None)
auto_scale_lr = dict(base_batch_size=2048)
custom_hooks = [dict(type="EMAHook", momentum=1.6e-4, update_buffers=True)]
variants = {"va_flatten_cswin_tiny": {"drop_path_rate": 0.2}, "va_*_cswin_small": {"drop_path_rate": 0.4}}
