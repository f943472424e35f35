# Mask R-CNN on cut-out photographs.
_base_ = ["./fcos_efficientnet-lite0_8-12e_stamps.py"]
model = dict(detector=dict(_delete_=True, type="MaskRCNN", rpn_post_nms_top_n_train=300, box_batch_size_per_image=128))
val_evaluator = dict(scores=dict(segm=dict(type="DetectionScores", iou_type="segm")))
test_evaluator = dict(scores=dict(segm=dict(type="DetectionScores", iou_type="segm")))
