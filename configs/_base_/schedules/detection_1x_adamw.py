# Twelve epochs over COCO with AdamW, for 16 pictures a step: vision transformers.
_base_ = ["./detection_1x.py"]
optim_wrapper = dict(
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=0.05),
)
