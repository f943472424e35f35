# Pascal VOC 2012: 20 classes and the background, crops of 512 px, in data/VOCdevkit/VOC2012.
data_preprocessor = dict(
    type="ImgDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    pad_size_divisor=32,
)
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
    drop_last=True,
    dataset=dict(type="VOCSegmentation", data_root=data_root, sets=[("2012", "train")], pipeline=train_pipeline),
    sampler=dict(type="SeededSampler", shuffle=True),
    collate_fn=dict(type="list_collate"),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    dataset=dict(
        type="VOCSegmentation",
        data_root=data_root,
        sets=[("2012", "val")],
        pipeline=test_pipeline,
        test_mode=True,
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="TorchMetrics",
    scores=dict(seg=dict(type="SegmentationScores", num_classes=21)),
)
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
