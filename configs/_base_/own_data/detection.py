# One's own boxes: data sets and classes come from the config that inherits from this one.
_base_ = [
    "../models/fcos_fpn.py",
    "../loaders/detection.py",
    "../schedules/adamw_warm200.py",
    "../detection_runtime.py",
]
model = dict(frozen_stages=0, norm_eval=False, pyramid_channels=128, pyramid_norm=True)
train_dataloader = dict(batch_size=4, num_workers=2, persistent_workers=True)
val_dataloader = dict(batch_size=4, num_workers=2, persistent_workers=True)
test_dataloader = dict(batch_size=4, num_workers=2, persistent_workers=True)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(max_epochs=24)
