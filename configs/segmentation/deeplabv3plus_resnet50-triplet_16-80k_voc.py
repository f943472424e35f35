# DeepLabV3+ on Pascal VOC 2012 over a ResNet-50 with triplet attention, from the authors' ImageNet weights, 4 processes
# with 4 pictures each. Evaluated by a sliding window. `visionattn download va_resnet50_triplet.in1k` fetches the
# weights or says where they are.
_base_ = [
    "../_base_/models/deeplabv3plus.py",
    "../_base_/datasets/voc_segmentation.py",
    "../_base_/schedules/segmentation_80k.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_resnet50_triplet.in1k",
        pretrained=True,
    ),
    num_classes=21,
    inference=dict(crop=(512, 512), stride=(341, 341)),
)
