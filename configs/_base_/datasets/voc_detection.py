# Pascal VOC: trains on 07+12 trainval, tests on 07 test, in data/VOCdevkit/{VOC2007,VOC2012}. Scored as COCO is.
_base_ = ["../loaders/detection.py"]
data_root = "data/VOCdevkit"
test_pipeline = [dict(type="FitResize", short=600, long=1000)]
train_pipeline = [*test_pipeline, dict(type="HorizontalFlip", p=0.5)]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    dataset=dict(
        type="VOCDetection",
        data_root=data_root,
        sets=[("2007", "trainval"), ("2012", "trainval")],
        pipeline=train_pipeline,
        drop_empty=True,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    dataset=dict(
        type="VOCDetection", data_root=data_root, sets=[("2007", "test")], pipeline=test_pipeline, test_mode=True
    ),
)
test_dataloader = val_dataloader
