# Synthetic digits with masks of class numbers: the background, then the ten digits.
_base_ = ["./digit_scenes_detection.py"]
train_dataloader = dict(dataset=dict(task="semantic"))
val_dataloader = dict(dataset=dict(task="semantic"))
test_dataloader = val_dataloader
val_evaluator = dict(scores=dict(_delete_=True, seg=dict(type="SegmentationScores", num_classes=11)))
test_evaluator = val_evaluator
