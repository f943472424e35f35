# A small segmentor for scenes of digits: few pixels are a digit's, so the Dice loss weighs the classes alike.
# Another backbone is one line: `backbone=dict(_delete_=True, model_name="va_resnet18_ela_l")`.
_base_ = [
    "../_base_/models/deeplabv3plus.py",
    "../_base_/datasets/digit_scenes_semantic.py",
    "../_base_/schedules/adamw_warm200.py",
    "../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(_delete_=True, model_name="va_resnet10n_cbam", stem_stride=4, channels=(32, 64, 128, 256)),
    decoder=dict(decoder_channels=64, decoder_atrous_rates=(1, 2, 3), decoder_aspp_dropout=0.1),
    num_classes=11,
    losses=[dict(type="CrossEntropyLoss"), dict(type="DiceLoss")],
    auxiliary=None,
)
train_dataloader = dict(dataset=dict(length=4000))
optim_wrapper = dict(optimizer=dict(lr=4e-3))
train_cfg = dict(max_epochs=6)
