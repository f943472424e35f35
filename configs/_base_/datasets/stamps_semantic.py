# Cut-out photographs on photographs, eight classes and the background, made by `visionattn prepare-objects`.
data_preprocessor = dict(
    type="ImgDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    pad_size_divisor=32,
)
data_root = "data/stamps"
classes = ["background", "bird", "mammal", "insect", "flower", "fruit or vegetable", "vehicle", "fish", "instrument"]
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
        type="ImageMaskFolder",
        image_root=f"{data_root}/train",
        mask_root=f"{data_root}/train-masks",
        classes=classes,
        pipeline=train_pipeline,
    ),
    sampler=dict(type="SeededSampler", shuffle=True),
    collate_fn=dict(type="list_collate"),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(
        type="ImageMaskFolder",
        image_root=f"{data_root}/test",
        mask_root=f"{data_root}/test-masks",
        classes=classes,
        pipeline=[],
        test_mode=True,
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="TorchMetrics",
    scores=dict(seg=dict(type="SegmentationScores", num_classes=9)),
)
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
