# SegFormer's all-MLP decoder (arXiv 2105.15203).
model = dict(
    type="Segmentor",
    backbone=dict(model_name="va_resnet50_cbam"),
    decoder=dict(type="Segformer"),
    num_classes=150,
)
