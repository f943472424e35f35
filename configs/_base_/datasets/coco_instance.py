# COCO 2017 with masks.
_base_ = ["./coco_detection.py"]
train_dataloader = dict(dataset=dict(masks=True))
val_dataloader = dict(dataset=dict(masks=True))
test_dataloader = val_dataloader
val_evaluator = dict(scores=dict(segm=dict(type="DetectionScores", iou_type="segm")))
test_evaluator = val_evaluator
