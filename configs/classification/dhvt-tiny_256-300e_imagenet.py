# The recipe of DHVT's authors on ImageNet-1K (arXiv 2210.05958), DeiT's for 256 images a step with ten epochs of
# warm-up. Published top-1 accuracy: tiny 77.6 %, small 82.3 %. On CIFAR-100, from scratch, they train the 32 px
# networks with a rate of 1e-3 for 512 images a step and five epochs of warm-up: 85.7 % (small, patches of 2 px).
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_dhvt_tiny_p16", drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=5e-4), clip_grad=None)
param_scheduler = [
    dict(type="LinearLR", start_factor=2e-3, end=10, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, begin=10, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=256)
variants = {"va_dhvt_small_p16": {"drop_path_rate": 0.1}}
