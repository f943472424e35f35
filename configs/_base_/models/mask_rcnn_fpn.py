# Mask R-CNN (arXiv 1703.06870) as for COCO: Faster R-CNN with a mask for each box. The data set must give masks.
_base_ = ["./faster_rcnn_fpn.py"]
model = dict(detector=dict(type="MaskRCNN"))
