# A vision transformer for ImageNet-1K with mixup, CutMix and label smoothing; configs that inherit from this one name
# another.
model = dict(
    type="Classifier",
    backbone=dict(model_name="va_twins_svt_small", num_classes=1000),
    loss=dict(type="CrossEntropyLoss", label_smoothing=0.1),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0),
)
