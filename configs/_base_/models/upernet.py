# UPerNet (arXiv 1807.10221) as for ADE20K, with an auxiliary head on the third stage.
model = dict(
    type="Segmentor",
    backbone=dict(model_name="va_resnet50_cbam"),
    decoder=dict(type="UPerNet", decoder_channels=512),
    auxiliary=dict(loss_weight=0.4),
    num_classes=150,
)
