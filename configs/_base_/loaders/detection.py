# What all detection data sets share: pictures of their own sizes in a batch, scored as COCO is.
data_preprocessor = dict(
    type="ImgDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    pad_size_divisor=32,
)
train_dataloader = dict(
    drop_last=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    collate_fn=dict(type="list_collate"),
)
val_dataloader = dict(
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TorchMetrics", scores=dict(bbox=dict(type="DetectionScores")))
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
