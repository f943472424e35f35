# Unet (arXiv 1505.04597) over all maps of a network, from the stem on.
model = dict(
    type="Segmentor",
    backbone=dict(model_name="va_resnet50_cbam", out_indices=(0, 1, 2, 3, 4)),
    decoder=dict(type="Unet"),
    num_classes=150,
)
