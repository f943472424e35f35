# Pascal VOC: trains on 07+12 trainval, tests on 07 test, in data/VOCdevkit/{VOC2007,VOC2012}. Scored as COCO is.
data_preprocessor = dict(
    type="ImgDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    pad_size_divisor=32,
)
data_root = "data/VOCdevkit"
test_pipeline = [dict(type="FitResize", short=600, long=1000)]
train_pipeline = [*test_pipeline, dict(type="HorizontalFlip", p=0.5)]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    dataset=dict(
        type="VOCDetection",
        data_root=data_root,
        sets=[("2007", "trainval"), ("2012", "trainval")],
        pipeline=train_pipeline,
        drop_empty=True,
    ),
    sampler=dict(type="SeededSampler", shuffle=True),
    collate_fn=dict(type="list_collate"),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    dataset=dict(
        type="VOCDetection",
        data_root=data_root,
        sets=[("2007", "test")],
        pipeline=test_pipeline,
        test_mode=True,
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="TorchMetrics",
    scores=dict(
        bbox=dict(type="DetectionScores"),
    ),
)
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
