# COCO 2017 in the usual folders: data/coco/{annotations,train2017,val2017}. The shorter side is 800 px, as in the 1x
# recipes.
_base_ = ["../loaders/detection.py"]
data_root = "data/coco"
test_pipeline = [dict(type="FitResize", short=800, long=1333)]
train_pipeline = [*test_pipeline, dict(type="HorizontalFlip", p=0.5)]
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    dataset=dict(
        type="CocoDetection",
        ann_file=f"{data_root}/annotations/instances_train2017.json",
        image_root=f"{data_root}/train2017",
        pipeline=train_pipeline,
        drop_empty=True,
    ),
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
)
test_dataloader = val_dataloader
