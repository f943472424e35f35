# DeepLabV3+ (arXiv 1802.02611); the network's last stage is dilated instead of strided.
model = dict(
    type="Segmentor",
    backbone=dict(model_name="va_resnet50_cbam", output_stride=16),
    decoder=dict(type="DeepLabV3Plus"),
    auxiliary=dict(loss_weight=0.4),
    num_classes=150,
)
