# Pascal VOC 2012: 20 classes and the background, crops of 512 px, in data/VOCdevkit/VOC2012. Pictures that are smaller
# than the crop are padded.
_base_ = ["../loaders/segmentation.py"]
data_root = "data/VOCdevkit"
train_pipeline = [
    dict(type="FitResize", short=512, long=2048, ratio=(0.5, 2.0)),
    dict(type="BalancedCrop", height=512, width=512),
    dict(type="HorizontalFlip", p=0.5),
    dict(type="ColorJitter", brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05, p=0.5),
]
test_pipeline = [dict(type="FitResize", short=512, long=2048)]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    dataset=dict(type="VOCSegmentation", data_root=data_root, sets=[("2012", "train")], pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    dataset=dict(
        type="VOCSegmentation", data_root=data_root, sets=[("2012", "val")], pipeline=test_pipeline, test_mode=True
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(scores=dict(seg=dict(num_classes=21)))
test_evaluator = val_evaluator
