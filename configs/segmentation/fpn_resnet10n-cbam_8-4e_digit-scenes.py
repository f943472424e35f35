# A small segmentor for scenes of digits. It starts from the packaged weights of a classifier of the same digits.
# Another backbone is one line: `backbone=dict(_delete_=True, model_name="va_resnet18_ela_l")`.
_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/datasets/digit_scenes_semantic.py",
    "../_base_/schedules/adamw_warm200.py",
    "../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(model_name="va_resnet10n_cbam.digits", pretrained=True),
    decoder=dict(decoder_pyramid_channels=64, decoder_segmentation_channels=32),
    num_classes=11,
)
train_dataloader = dict(batch_size=8, dataset=dict(length=4000))
