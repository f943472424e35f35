# A small FCOS on synthetic scenes of digits, from the packaged weights of a classifier of the same digits. Objects are
# 20 to 70 px large: maps of strides 8 and 16, and two coarser ones, suffice. Scenes to train on hold more digits than
# those of the test (1 to 6): each costs the same.
# Another backbone is one line: `model.backbone.model_name=va_davit_tiny` starts from scratch.
_base_ = [
    "../_base_/models/fcos_fpn.py",
    "../_base_/datasets/digit_scenes_detection.py",
    "../_base_/schedules/adamw_warm200.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(model_name="va_resnet10n_cbam.digits", pretrained="packaged", strides=(8, 16)),
    num_classes=10,
    pyramid_channels=64,
    pyramid_norm=True,
    frozen_stages=0,
    norm_eval=False,
    channels_last=True,
)
train_dataloader = dict(batch_size=8, dataset=dict(length=4000, renew=True, digits=(3, 8)))
optim_wrapper = dict(optimizer=dict(fused=True))
train_cfg = dict(max_epochs=4)
