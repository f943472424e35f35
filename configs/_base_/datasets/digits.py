# The 8x8 digits that ship with scikit-learn, enlarged to 32 px. Every fifth image is for testing.
_base_ = ["../loaders/classification.py"]
data_preprocessor = dict(type="ImgDataPreprocessor", mean=[127.5] * 3, std=[127.5] * 3)
test_pipeline = [dict(type="Resize", height=32, width=32)]
train_pipeline = [
    *test_pipeline,
    dict(type="Affine", scale=(0.9, 1.1), translate_percent=(-0.08, 0.08), rotate=(-10, 10), shear=(-5, 5), p=1.0),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(type="Digits", split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    dataset=dict(type="Digits", split="test", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="TorchMetrics",
    scores=dict(
        top1=dict(type="MulticlassAccuracy", num_classes=10, average="micro"),
        confusion=dict(type="MulticlassConfusionMatrix", num_classes=10),
    ),
)
test_evaluator = val_evaluator
