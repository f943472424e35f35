# Faster R-CNN on synthetic scenes of digits, with the settings of the small FCOS.
_base_ = ["./fcos_resnet10n-cbam_8-4e_digit-scenes.py"]
model = dict(
    detector=dict(_delete_=True, type="FasterRCNN", rpn_post_nms_top_n_train=300, box_batch_size_per_image=64),
    anchors=dict(sizes=[[20, 32], [45, 64], [90, 128]]),
)
