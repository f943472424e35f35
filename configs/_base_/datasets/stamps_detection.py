# Cut-out photographs on photographs, eight classes, made by `visionattn prepare-objects`, with boxes and masks.
data_preprocessor = dict(
    type="ImgDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    pad_size_divisor=32,
)
data_root = "data/stamps"
train_pipeline = [
    dict(type="HorizontalFlip", p=0.5),
    dict(type="RandomBrightnessContrast", p=0.5),
    dict(type="Affine", scale=(0.8, 1.25), translate_percent=(-0.1, 0.1), p=0.5),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    dataset=dict(
        type="CocoDetection",
        ann_file=f"{data_root}/train.json",
        image_root=f"{data_root}/train",
        masks=True,
        pipeline=train_pipeline,
        drop_empty=True,
    ),
    sampler=dict(type="SeededSampler", shuffle=True),
    collate_fn=dict(type="list_collate"),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(
        type="CocoDetection",
        ann_file=f"{data_root}/test.json",
        image_root=f"{data_root}/test",
        masks=True,
        pipeline=[],
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
        segm=dict(type="DetectionScores", iou_type="segm"),
    ),
)
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
