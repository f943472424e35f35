# ImageNet-1K in the usual folders: data/imagenet/{train,val}/<class>/*.JPEG.
_base_ = ["../loaders/classification.py"]
data_preprocessor = dict(type="ImgDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
data_root = "data/imagenet"
train_pipeline = [
    dict(type="RandomResizedCrop", size=(224, 224), scale=(0.08, 1.0)),
    dict(type="HorizontalFlip", p=0.5),
]
test_pipeline = [
    dict(type="SmallestMaxSize", max_size=256),
    dict(type="CenterCrop", height=224, width=224),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(type="ImageFolder", data_root=f"{data_root}/train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(type="ImageFolder", data_root=f"{data_root}/val", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="TorchMetrics",
    scores=dict(
        top1=dict(type="MulticlassAccuracy", num_classes=1000, average="micro"),
        top5=dict(type="MulticlassAccuracy", num_classes=1000, average="micro", top_k=5),
    ),
)
test_evaluator = val_evaluator
