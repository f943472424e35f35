# One's own masks: data sets and classes come from the config that inherits from this one.
_base_ = [
    "../models/semantic_fpn.py",
    "../loaders/segmentation.py",
    "../schedules/adamw_warm200.py",
    "../segmentation_runtime.py",
]
train_dataloader = dict(batch_size=4, num_workers=2, persistent_workers=True)
val_dataloader = dict(batch_size=4, num_workers=2, persistent_workers=True)
test_dataloader = dict(batch_size=4, num_workers=2, persistent_workers=True)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(max_epochs=24)
