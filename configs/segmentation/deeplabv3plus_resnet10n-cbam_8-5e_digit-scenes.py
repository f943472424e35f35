# A small DeepLabV3+ on synthetic scenes of digits, from the packaged weights of a classifier of the same digits. Its
# maps have strides 4, 8 and 8: a digit of 25 px is too small for coarser ones. Scenes to train on hold twice as many
# digits as those of the test (1 to 6), at the same cost; therefore the background counts more than it would by itself.
# The Dice loss goes for the score itself.
# Another backbone is one line: `model.backbone.model_name=va_davit_tiny` starts from scratch.
_base_ = [
    "../_base_/models/deeplabv3plus.py",
    "../_base_/datasets/digit_scenes_semantic.py",
    "../_base_/schedules/adamw_warm200.py",
    "../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(model_name="va_resnet10n_cbam.digits", pretrained="packaged", output_stride=16, strides=(4, 8, 16)),
    decoder=dict(decoder_channels=64, decoder_atrous_rates=(1, 2, 4), decoder_aspp_dropout=0.0),
    num_classes=11,
    losses=[dict(type="CrossEntropyLoss", class_weights=[2.0] + [1.0] * 10), dict(type="DiceLoss")],
    loss_stride=2,
    auxiliary=None,
    channels_last=True,
)
train_dataloader = dict(batch_size=8, dataset=dict(length=4000, renew=True, digits=(5, 12)))
optim_wrapper = dict(optimizer=dict(lr=5e-3, fused=True))
train_cfg = dict(max_epochs=5)
