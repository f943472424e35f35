# Synthetic objects: cut-out photographs on photographs, eight classes, with boxes and masks, made by
# `visionattn prepare-objects`.
_base_ = ["../loaders/detection.py"]
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
    dataset=dict(
        type="CocoDetection",
        ann_file=f"{data_root}/train.json",
        image_root=f"{data_root}/train",
        masks=True,
        pipeline=train_pipeline,
        drop_empty=True,
    ),
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
)
test_dataloader = val_dataloader
val_evaluator = dict(scores=dict(segm=dict(type="DetectionScores", iou_type="segm")))
test_evaluator = val_evaluator
