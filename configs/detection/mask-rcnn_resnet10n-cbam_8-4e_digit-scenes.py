# Mask R-CNN on synthetic scenes of digits: the data set also gives masks, and they are scored.
_base_ = ["./faster-rcnn_resnet10n-cbam_8-4e_digit-scenes.py"]
model = dict(detector=dict(type="MaskRCNN"))
train_dataloader = dict(dataset=dict(task="instance"))
val_dataloader = dict(dataset=dict(task="instance"))
test_dataloader = dict(dataset=dict(task="instance"))
val_evaluator = dict(scores=dict(segm=dict(type="DetectionScores", iou_type="segm")))
test_evaluator = dict(scores=dict(segm=dict(type="DetectionScores", iou_type="segm")))
