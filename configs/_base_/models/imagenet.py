# A network for ImageNet-1K, trained with plain cross-entropy; configs that inherit from this one name another.
model = dict(
    type="Classifier",
    backbone=dict(model_name="va_resnet50_cbam", num_classes=1000),
    loss=dict(type="CrossEntropyLoss"),
)
