# Mask R-CNN on synthetic scenes of objects, with the settings of the FCOS.
_base_ = ["./fcos_efficientnet-lite0_8-12e_stamps.py"]
model = dict(detector=dict(_delete_=True, type="MaskRCNN", rpn_post_nms_top_n_train=300, box_batch_size_per_image=128))
val_evaluator = dict(scores=dict(segm=dict(type="DetectionScores", iou_type="segm")))
test_evaluator = dict(scores=dict(segm=dict(type="DetectionScores", iou_type="segm")))
