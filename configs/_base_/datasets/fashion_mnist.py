# Fashion-MNIST at its own 28 px: 60,000 training and 10,000 test images.
_base_ = ["../loaders/classification.py"]
data_preprocessor = dict(type="ImgDataPreprocessor", mean=[73.0] * 3, std=[90.0] * 3)
data_root = "data/fashion-mnist"
train_pipeline = [
    dict(type="Pad", padding=2),
    dict(type="RandomCrop", height=28, width=28),
    dict(type="HorizontalFlip", p=0.5),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(type="FashionMNIST", split="train", data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    dataset=dict(type="FashionMNIST", split="test", data_root=data_root, pipeline=[]),
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
