# Semantic FPN (arXiv 1901.02446) as for ADE20K.
model = dict(
    type="Segmentor",
    backbone=dict(model_name="va_resnet50_cbam"),
    decoder=dict(type="FPN", decoder_dropout=0.1),
    num_classes=150,
)
