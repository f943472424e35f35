model = dict(
    type="Classifier",
    backbone=dict(model_name="va_resnet50_cbam", num_classes=1000),
    loss=dict(type="CrossEntropyLoss"),
)
