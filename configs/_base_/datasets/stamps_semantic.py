# Synthetic objects: cut-out photographs on photographs, eight classes and the background, as masks of class numbers,
# made by `visionattn prepare-objects`.
_base_ = ["../loaders/segmentation.py"]
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
    dataset=dict(
        type="ImageMaskFolder",
        image_root=f"{data_root}/train",
        mask_root=f"{data_root}/train-masks",
        classes=classes,
        pipeline=train_pipeline,
    ),
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
)
test_dataloader = val_dataloader
val_evaluator = dict(scores=dict(seg=dict(num_classes=9)))
test_evaluator = val_evaluator
