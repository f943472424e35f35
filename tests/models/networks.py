"""Networks as the contracts need them: reproducible, and away from their start."""

import copy

import timm
import torch

import visionattn  # noqa: F401
from visionattn.testing.fixtures import relative_error

NARROW = {"dims": (16, 32, 64, 128), "depths": (2, 1, 1, 1), "num_heads": (2, 2, 4, 8)}


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def settled(name, **kwargs):
    """A network in evaluation mode, gates away from their start, such that signals neither fade nor grow."""
    model = create(name, **kwargs)
    for key, parameter in model.named_parameters():
        if parameter.ndim <= 1:
            torch.nn.init.normal_(parameter, 1.0 if key.endswith("weight") else 0.0, 0.1)
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None
        model(torch.randn(2, model.in_chans, 64, 64, device=next(model.parameters()).device))
    return model.eval()


def record_calls(model):
    """A list that every convolution and linear layer of a network enters each time it runs."""
    calls = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda module, args, out: calls.append(module))
    return calls


def rounding(model, x):
    """What float32 itself loses: deep networks of random weights magnify what other kernels round otherwise."""
    return relative_error(model(x), copy.deepcopy(model).double()(x.double()))
