# 80,000 iterations with AdamW, for 16 pictures a step: Semantic FPN over vision transformers.
_base_ = ["./segmentation_80k.py"]
optim_wrapper = dict(
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=1e-4),
)
param_scheduler = dict(eta_min=0.0)
