# A narrow network for 28 to 64 px and ten classes; configs that inherit from this one name another.
model = dict(
    type="Classifier",
    backbone=dict(model_name="va_resnet10n_cbam", num_classes=10),
    loss=dict(type="CrossEntropyLoss", label_smoothing=0.1),
)
