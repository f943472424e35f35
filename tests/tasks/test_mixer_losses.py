"""Losses that mixers report reach every task; nothing else changes."""

import pytest
import torch
from dense import detection_batch, segmentation_batch
from torch import nn
from torch._dynamo.utils import counters

import visionattn  # noqa: F401
from visionattn.catalog import Card
from visionattn.ops.losses import add_loss, collect_losses
from visionattn.tasks import Classifier, Detector, Segmentor

SIZES = [(64, 64), (64, 64)]


class Balanced(nn.Module):
    """A mixer with a loss of its own in training."""

    has_losses = True

    def __init__(self, dim, **dd):
        super().__init__()
        self.linear = nn.Linear(dim, dim, **dd)

    def forward(self, x, losses=None):
        x = self.linear(x)
        if self.training:
            add_loss("balance", x.square().mean(), losses)
        return x


CARD = Card(name="balanced", title="Balanced", kind="mixer", factory=Balanced, summary="", paper="none")
BACKBONE = {"model_name": "va_stm_pool_nano", "mixer": CARD, "depths": (1, 1, 1, 1)}
MOH = {"model_name": "va_stm_moh_nano", "depths": (1, 1, 1, 1), "layer_scale": 0.1}


def classification(backbone=BACKBONE):
    task = Classifier({**backbone, "num_classes": 5})
    return task, torch.randn(4, 3, 32, 32), {"label": torch.arange(4), "index": torch.arange(4)}


def detection(backbone=BACKBONE):
    fcos = {"type": "FCOS", "topk_candidates": 10}
    return Detector(backbone, fcos, num_classes=5, pyramid_channels=64), *detection_batch(SIZES, [1, 2])


def segmentation(backbone=BACKBONE):
    return Segmentor(backbone, {"type": "FPN"}, num_classes=5), *segmentation_batch(SIZES)


@pytest.mark.parametrize("build", [classification, detection, segmentation])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_they_are_losses_of_the_task(build, checkpointing):
    torch.manual_seed(0)
    task, inputs, samples = build()
    network = task.backbone if build is classification else task.backbone.network
    (network if build is classification else network.model).set_grad_checkpointing(checkpointing)
    values = []
    mixers = [module for module in task.modules() if isinstance(module, Balanced)]
    hooks = [
        m.register_forward_hook(lambda module, args, out: values.append(out.detach().square().mean())) for m in mixers
    ]
    losses = task.train()(inputs, samples, mode="loss")
    assert len(mixers) == len(values) == 4
    torch.testing.assert_close(losses["loss_balance"], torch.stack(values).mean())
    for hook in hooks:
        hook.remove()
    alone = torch.autograd.grad(losses["loss_balance"], mixers[-1].linear.weight, retain_graph=True)[0]
    assert alone.any()
    total, _ = task.parse_losses(losses)
    total.backward()
    assert len(losses) >= 2 and torch.equal(total, sum(losses.values()))
    if build is not detection:
        task.eval()
        assert not any("mixer" in key for key in task(inputs, samples, mode="loss"))


@pytest.mark.parametrize("build", [classification, detection, segmentation])
def test_balance_of_heads_reaches_every_task(build):
    """Plain, checkpointed and compiled: the same loss, which moves the routing, and nothing stays in the network."""
    torch.manual_seed(0)
    task, inputs, samples = build(MOH)
    task.train()
    whole = task.backbone if build is classification else task.backbone.network
    network = whole if build is classification else whole.model
    found = []
    for checkpointing, compiled in ((False, False), (True, False), (False, True), (True, True)):
        network.set_grad_checkpointing(checkpointing)
        if compiled:
            torch.compiler.reset()
            counters.clear()
            whole.compile(backend="aot_eager", fullgraph=True)  # as the tasks' argument does
        losses = task(inputs, samples, mode="loss")
        assert counters["stats"]["unique_graphs"] == 1 or not compiled
        routers = [m for m in network.modules() if getattr(m, "wg", None) is not None]
        assert len(routers) == 4
        grad = torch.autograd.grad(losses["loss_balance"], routers[-1].wg.weight, retain_graph=True)[0]
        found.append((losses["loss_balance"].detach(), grad))
        task.zero_grad()
        task.parse_losses(losses)[0].backward()
        assert all(m.wg.weight.grad is not None for m in routers)
        assert not [v for m in network.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
    assert 0 < found[0][0] < 0.01 * 8 and found[0][1].any()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-7)


def test_one_collector_at_a_time():
    task, inputs, samples = classification(MOH)
    with collect_losses(), pytest.raises(RuntimeError, match=r"collect_losses\(\) is open already; close it before"):
        task.train()(inputs, samples, mode="loss")
    assert "loss_balance" in task(inputs, samples, mode="loss")  # nothing stayed open
