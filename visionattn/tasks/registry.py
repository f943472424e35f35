"""The registries of the tasks, which a user's file extends if a config names it in `custom_imports`.

An entry is a class or a function, registered by `@LOSSES.register_module()`; a config names it as `type`, and the rest
of that dict are its arguments. Besides these it gets what is offered below, if it names it.
"""

from mmengine.registry import Registry

__all__ = ["DECODERS", "DETECTORS", "FRONTENDS", "HEADS", "LOSSES", "LOSS_COLLECTORS"]

# Offered: `num_classes`, `ignore_index`. A module called with logits `(B, K)` and class numbers `(B,)` or probabilities
# `(B, K)` by the classifier, with `(B, K, H, W)` and `(B, H, W)` by the segmentor. `log_name` is its name in logs.
LOSSES = Registry("loss", scope="visionattn")

# Offered: `build_maps(levels)`, which makes the feature maps of the backbone (a module to be kept in the detector, that
# gives a list of maps and has `channels` and `strides`), and `num_classes`. A module called as torchvision's detectors
# are: `detector(images, targets)` with images.tensors `(B, C, H, W)` and images.image_sizes gives a dict of losses in
# training, and in evaluation one dict a picture: `boxes`, `scores`, `labels`, and `masks` if it has `with_masks` set.
# `first_class` is its number of the first class, 0 without it.
DETECTORS = Registry("detector", scope="visionattn")

# Offered: `build_maps(levels)` and `num_classes`, as above. A module `(B, C, H, W) -> (logits, maps)`: logits of any
# size, and the maps that it was made from, the last but one of which an auxiliary head gets.
DECODERS = Registry("decoder", scope="visionattn")

# Offered: `in_channels`, those of the pictures. A module on normalised pictures, `(B, C, H, W) -> (B, C, H, W)`, that
# learns with the network behind it.
FRONTENDS = Registry("front-end", scope="visionattn")

# Offered: `in_channels` and `num_classes`. A module on one feature map `(B, C, H, W)` that gives logits: `(B, K)` for
# the classifier, `(B, K, h, w)` for the segmentor's auxiliary head.
HEADS = Registry("head", scope="visionattn")

# Offered: `network`, the task's. A context manager that is entered for the forward pass of each training step, and
# whose `losses()` afterwards gives further losses by name.
LOSS_COLLECTORS = Registry("loss collector", scope="visionattn")
