# What all segmentation data sets share: as detection, but scored by the overlap of masks; `num_classes` is the data's.
_base_ = ["./detection.py"]
val_evaluator = dict(scores=dict(_delete_=True, seg=dict(type="SegmentationScores")))
test_evaluator = val_evaluator
