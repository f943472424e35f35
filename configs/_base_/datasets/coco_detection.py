# COCO 2017 in the usual folders: data/coco/{annotations,train2017,val2017}. The shorter side is 800 px, as in the 1x
# recipes.
data_preprocessor = dict(
    type="ImgDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    pad_size_divisor=32,
)
data_root = "data/coco"
test_pipeline = [dict(type="FitResize", short=800, long=1333)]
train_pipeline = [*test_pipeline, dict(type="HorizontalFlip", p=0.5)]
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    dataset=dict(
        type="CocoDetection",
        ann_file=f"{data_root}/annotations/instances_train2017.json",
        image_root=f"{data_root}/train2017",
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
        type="CocoDetection",
        ann_file=f"{data_root}/annotations/instances_val2017.json",
        image_root=f"{data_root}/val2017",
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
