"""Counterfactual pictures of digits: they change where the class is decided, and little elsewhere."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import visionattn
from visionattn.explain import counterfactual, counterfactual_saliency, mass_in_mask


@cache
def pairs(train, count=600):
    """Two digits side by side, `(B, 1, 8, 16)` in 0..1: whether the left one is a one or a zero is the class."""
    data = load_digits()
    chosen = np.arange(len(data.target)) % 5 != 0 if train else np.arange(len(data.target)) % 5 == 0
    images, classes = data.images[chosen] / 16, data.target[chosen]
    rng = np.random.default_rng(int(train))
    left = rng.choice(np.flatnonzero(classes < 2), count)
    right = rng.choice(len(images), count)
    x = np.concatenate([images[left], images[right]], axis=2)[:, None]
    return torch.from_numpy(x).float(), torch.from_numpy(classes[left]).long()


@cache
def trained():
    """A classifier and an autoencoder, in eval mode: seconds."""
    torch.manual_seed(0)
    x, labels = pairs(True)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(512, 2)
    )
    encoder = nn.Sequential(nn.Conv2d(1, 24, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(24, 8, 1))
    decoder = nn.Sequential(nn.Conv2d(8, 24, 1), nn.ReLU(), nn.ConvTranspose2d(24, 1, 4, stride=2, padding=1))
    for parts, loss in (
        ((model,), lambda batch, classes: F.cross_entropy(model(batch), classes)),
        ((encoder, decoder), lambda batch, classes: F.mse_loss(decoder(encoder(batch)), batch)),
    ):
        optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()], lr=1e-2)
        for _ in range(12):
            for rows in torch.randperm(len(x)).split(50):
                optimizer.zero_grad()
                loss(x[rows], labels[rows]).backward()
                optimizer.step()
    return model.eval(), encoder.eval(), decoder.eval()


def near(**kwargs):
    """The distance of the paper suits its autoencoder's codes, which are far larger."""
    return {"distance": 1.0, **kwargs}


def test_the_class_goes_where_it_is_wanted():
    model, encoder, decoder = trained()
    x, labels = pairs(False, 200)
    assert (model(x).argmax(1) == labels).float().mean() > 0.97
    assert F.mse_loss(decoder(encoder(x)), x) < 0.1 * x.var()
    before, after = counterfactual(model, encoder, decoder, x, 1 - labels, **near(step_size=1.0))
    assert torch.equal(before, decoder(encoder(x)).detach())
    assert (model(before).argmax(1) == labels).float().mean() > 0.95
    assert (model(after).argmax(1) == 1 - labels).float().mean() > 0.9
    same = counterfactual(model, encoder, decoder, x, labels, **near(step_size=1.0))[1]
    assert (same - before).abs().mean() < 0.3 * (after - before).abs().mean()
    held = counterfactual(model, encoder, decoder, x, 1 - labels, distance=100.0)[1]
    assert (held - before).abs().mean() < (after - before).abs().mean()


def test_saliency_lies_where_the_class_is_decided():
    model, encoder, decoder = trained()
    x, labels = pairs(False, 200)
    left = torch.zeros(200, 8, 16)
    left[:, :, :8] = 1
    for own in (0, 1):
        x_own = x[labels == own]
        saliency = counterfactual_saliency(model, encoder, decoder, x_own, (1 - own,), **near())
        shares = mass_in_mask(saliency[:, 0], left[: len(x_own)])
        assert shares.mean() > 0.83 and shares.min() > 0.7
    # The map of the class that a picture is of already is made of smaller steps, and scaled like the other.
    both = counterfactual_saliency(model, encoder, decoder, x, **near())
    assert both.shape == (200, 1, 8, 16) and both.min() >= 0 and both.max() <= 1
    assert mass_in_mask(both[:, 0], left).mean() > 0.6


def test_is_the_paper_s_loop_one_picture_at_a_time():
    model, encoder, decoder = (copy.deepcopy(part).double() for part in trained())
    x = pairs(False, 3)[0].double()
    maps = []
    for picture in x.split(1):
        start, own = encoder(picture).detach(), []
        for target in (1, 0):
            code = start
            for _ in range(4):
                code = code.detach().requires_grad_()
                loss = nn.CrossEntropyLoss()(model(decoder(code)), torch.tensor([target]))
                loss = loss + 100 * nn.L1Loss()(code, start)
                code = code - 0.1 * torch.autograd.grad(loss, code)[0]
            change = (decoder(start) - decoder(code)).abs()
            own.append(change / change.max())
        maps.append((own[0] + own[1]) / 2)
    torch.testing.assert_close(counterfactual_saliency(model, encoder, decoder, x, steps=4), torch.cat(maps).detach())


def test_leaves_the_networks_as_they_are():
    parts = [copy.deepcopy(part).train() for part in trained()]
    parts[0][1].eval()
    states = [copy.deepcopy(part.state_dict()) for part in parts]
    modes = [[module.training for module in part.modules()] for part in parts]
    with torch.no_grad():
        counterfactual_saliency(*parts, pairs(False, 2)[0], steps=2)
    for part, state, mode in zip(parts, states, modes, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in part.state_dict().items())
        assert [module.training for module in part.modules()] == mode
        assert all(p.grad is None for p in part.parameters())


def test_is_what_acat_takes():
    x = pairs(False, 2)[0]
    saliency = counterfactual_saliency(*trained(), x, **near(steps=3))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    network = visionattn.attach(
        network, "acat", where="0", start="paper", condition=True, example_input=torch.zeros_like(x)
    )
    assert not torch.equal(network(x, saliency), network(x, torch.zeros_like(saliency)))


def test_a_picture_that_nothing_changes_has_no_saliency():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    nn.init.zeros_(flat[1].weight)
    same = nn.Identity()
    assert counterfactual_saliency(flat, same, same, torch.rand(2, 1, 2, 3)).count_nonzero() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": (2,)}, r"target must lie in 0\.\.1, got 2"),
        ({"targets": (-1,)}, r"target must lie in 0\.\.1, got -1"),
        ({"targets": ()}, "targets must name one class at least, got none"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"decoder": nn.Upsample(scale_factor=2)}, r"decoder must give pictures \(2, 1, 2, 3\), got \(2, 1, 4, 6\)"),
    ],
)
def test_bad_arguments(change, message):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    arguments = {"model": flat, "encoder": nn.Identity(), "decoder": nn.Identity(), "x": torch.rand(2, 1, 2, 3)}
    with pytest.raises(ValueError, match=message):
        counterfactual_saliency(**{**arguments, **change})
    with pytest.raises(ValueError, match=r"target must be one class or one for each of 2 images, got \[0, 1, 0\]"):
        counterfactual(flat, nn.Identity(), nn.Identity(), torch.rand(2, 1, 2, 3), [0, 1, 0])
