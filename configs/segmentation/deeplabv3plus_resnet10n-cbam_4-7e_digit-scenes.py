# A small segmentor for scenes of digits. It starts from the packaged weights of a classifier of the same digits, on
# maps of strides 4, 8 and 8: a digit of 25 px is too small for coarser ones. Seven of eight pixels are background,
# which therefore counts less; the Dice loss goes for the score itself. Small batches, for many steps.
# Another backbone is one line: `backbone=dict(_delete_=True, model_name="va_resnet18_ela_l")`.
_base_ = [
    "../_base_/models/deeplabv3plus.py",
    "../_base_/datasets/digit_scenes_semantic.py",
    "../_base_/schedules/adamw_warm200.py",
    "../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(model_name="va_resnet10n_cbam.digits", pretrained=True, output_stride=16, out_indices=(2, 3, 4)),
    decoder=dict(decoder_channels=64, decoder_atrous_rates=(1, 2, 4), decoder_aspp_dropout=0.0),
    num_classes=11,
    losses=[dict(type="CrossEntropyLoss", class_weights=[0.6] + [1.0] * 10), dict(type="DiceLoss")],
    auxiliary=None,
    channels_last=True,
)
train_dataloader = dict(batch_size=4, dataset=dict(length=4000, renew=True))
train_cfg = dict(max_epochs=7)
