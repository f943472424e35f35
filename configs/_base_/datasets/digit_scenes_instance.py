# Synthetic digits with boxes and masks.
_base_ = ["./digit_scenes_detection.py"]
train_dataloader = dict(dataset=dict(task="instance"))
val_dataloader = dict(dataset=dict(task="instance"))
test_dataloader = val_dataloader
val_evaluator = dict(scores=dict(segm=dict(type="DetectionScores", iou_type="segm")))
test_evaluator = val_evaluator
