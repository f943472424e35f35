"""How each claim is tried: networks of one seed that differ in the mechanism alone, and what came of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from visionattn.explain import denoise_rope

from . import claim_tasks as tasks
from .claim_networks import Mixer, Recipe, TwoPictures, accuracy, fit, network, rotary
from .stems import KnownTiles, conv_stem

__all__ = ["clutter", "copying", "denoised_grids", "heads", "larger_grids", "neighbours", "null_models", "pairs"]
__all__ += ["recall", "scans", "windows"]

Values = dict[str, float]


def _trained(build: Callable[[], nn.Module], task: tasks.Task, recipe: Recipe, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return fit(build(), task, recipe, seed)


def _compare(
    builds: Mapping[str, Callable[[], nn.Module]], task: tasks.Task, test: tasks.Task, recipe: Recipe, seed: int
) -> Values:
    return {name: accuracy(_trained(build, task, recipe, seed), test) for name, build in builds.items()}


def _on_digits(variants: Mapping[str, Sequence[Mixer]], seed: int, recipe: Recipe) -> Values:
    builds = {name: partial(network, mixers) for name, mixers in variants.items()}
    return _compare(builds, tasks.digits("train"), tasks.digits("test"), recipe, seed)


def neighbours(seed: int, recipe: Recipe) -> Values:
    """Accuracy after a half and after all of the steps; what knows single digits is learnt before, and the same."""
    task, test = tasks.ordered_neighbours("train", 8000, seed), tasks.ordered_neighbours("test", 600, 0)
    single = partial(network, [("softmax", {})], stem=conv_stem, patch_size=4)
    known: Any = _trained(single, tasks.digits("train"), Recipe(300), seed)
    stem = partial(KnownTiles, encoder=known.stem, side=8)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "num_classes": 2, "heads": 2, "stem": stem}
    builds = {name: partial(network, [(name, {})], **sizes) for name in ("mta", "softmax")}
    half = _compare(builds, task, test, replace(recipe, steps=recipe.steps // 2), seed)
    return _compare(builds, task, test, recipe, seed) | {f"{name}, half the steps": v for name, v in half.items()}


def clutter(seed: int, recipe: Recipe) -> Values:
    """Accuracy, and where the keys that count lie."""
    pictures, labels, _ = tasks.cluttered_digits("train", 3000, seed)
    images, answers, there = tasks.cluttered_digits("test", 400, 0)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "heads": 2, "stem": conv_stem}
    chosen: dict[str, dict[str, Any]] = {"dma": {"keep": 0.25}, "softmax": {}, "landmark": {"window": 2}}
    found: Values = {}
    place = there.flatten(1).float()
    for name, options in chosen.items():
        build = partial(network, [(name, options)] * 2, **sizes)
        model: Any = _trained(build, (pictures, labels), recipe, seed)
        found[f"{name}, accuracy"] = accuracy(model, (images, answers))
        if name == "softmax":
            continue
        weights = _weights(model, images)
        if name == "dma":
            kept = (weights > 0).any(-2).float().mean(1)  # of a query, all see the same
            found["dma, kept keys on the digit"] = 100 * ((kept * place).sum(1) / kept.sum(1)).mean().item()
        else:
            outside = 1 - place
            taken = torch.einsum("bhqk,bk->bhq", weights, place).mean(1)
            found["landmark, weight that others give the digit"] = (
                100 * ((taken * outside).sum(1) / outside.sum(1)).mean().item()
            )
            for block in model.blocks:
                block.attn.fn.topk = 4
            found["landmark, accuracy with 4 windows"] = accuracy(model, (images, answers))
    return found | {"area of the digit": 100 * place.mean().item()}


@torch.no_grad()
def _weights(model: Any, images: torch.Tensor) -> torch.Tensor:
    """The weights of the last mixer, `(B, heads, N, N)`."""
    seen: list[torch.Tensor] = []
    attn = model.blocks[-1].attn.fn
    hook = attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(images)
    hook.remove()
    return attn.weights(seen[0])


def heads(seed: int, recipe: Recipe) -> Values:
    """Multi-head embedding against one head, and against multi-head attention of no more parameters."""
    one: Mixer = ("mhe", {"num_heads": 1, "head_dim": 8, "embed_std": 0.0})
    variants: dict[str, Mixer] = {
        "mul": ("mhe", {}),
        "add": ("mhe", {"mode": "add"}),
        "one head": one,
        "softmax": ("softmax", {}),
    }
    builds: dict[str, Callable[[], nn.Module]] = {
        name: partial(network, [mixer] * 2) for name, mixer in variants.items()
    }
    most = _size(builds["mul"]())
    narrow = max(dim for dim in range(4, 33, 4) if _size(network([("softmax", {})] * 2, dim=dim)) <= most)
    builds["softmax, equal parameters"] = partial(network, [("softmax", {})] * 2, dim=narrow)
    found = _compare(builds, tasks.digits("train"), tasks.digits("test"), recipe, seed)
    return found | {f"{name}, parameters": float(_size(build())) for name, build in builds.items()}


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def windows(seed: int, recipe: Recipe) -> Values:
    small = {"window_size": 2, "rel_pos": False}
    variants: dict[str, Sequence[Mixer]] = {
        "windows": [("swin", small)] * 2,
        "windows and anchors": [("star", {"window": 2})] * 2,
        "windows and moving averages": [("mega", {"window": 2, "max_window": 2, "ndim": 4})] * 2,
        "softmax": [("softmax", {})] * 2,
    }
    return _on_digits(variants, seed, recipe)


def copying(seed: int, recipe: Recipe) -> Values:
    sizes: dict[str, Any] = {"in_chans": 8, "num_classes": 8, "patch_size": 1, "img_size": 8, "dense": True}
    variants: dict[str, tuple[str, dict[str, Any], bool]] = {
        "mvpa": ("mvpa", {"grid_size": 8}, False),
        "softmax, no positions": ("softmax", {}, False),
        "softmax, learnt positions": ("softmax", {}, True),
    }
    found: Values = {}
    for name, (mixer, options, position) in variants.items():
        build = partial(network, [(mixer, options)], position=position, **sizes)
        model = _trained(build, tasks.copied_symbols(8, 4000, seed), recipe, seed)
        found |= {name: accuracy(model, tasks.copied_symbols(8, 100, 1000))}
        found |= {f"{name}, 12 x 12": accuracy(model, tasks.copied_symbols(12, 100, 1000))}
    return found


def recall(seed: int, recipe: Recipe) -> Values:
    sizes: dict[str, Any] = {
        "in_chans": 16,
        "num_classes": 8,
        "patch_size": 1,
        "img_size": (2, 8),
        "dense": True,
        "heads": 2,
    }
    variants: dict[str, Mixer] = {
        "titans": ("titans", {"chunk": 1, "directions": 1}),
        "uniform mean": ("deconstructed", {"kind": "uniform"}),
        "softmax": ("softmax", {}),
    }
    builds = {name: partial(network, [mixer] * 2, **sizes) for name, mixer in variants.items()}
    return _compare(builds, tasks.recalled_symbols(6000, seed), tasks.recalled_symbols(400, 1000), recipe, seed)


def null_models(seed: int, recipe: Recipe) -> Values:
    """Each kind in all four blocks, and in every other one in turn with attention."""
    kinds = ("uniform", "mlp", "self_gate", "relu", "taylor")
    plain: Mixer = ("deconstructed", {"kind": "softmax"})
    variants: dict[str, list[Mixer]] = {"softmax": [plain] * 4}
    for kind in kinds:
        other: Mixer = ("deconstructed", {"kind": kind})
        variants |= {kind: [other] * 4, f"{kind}, every other block": [other, plain] * 2}
    return _on_digits(variants, seed, recipe)


def scans(seed: int, recipe: Recipe) -> Values:
    regla: dict[str, dict[str, Any]] = {
        "refined": {},
        "plain gate": {"refined": False},
        "two directions": {"directions": 2},
    }
    chela: dict[str, dict[str, Any]] = {
        "both": {},
        "short only": {"long": None},
        "long only": {"short": None},
        "none": {"short": None, "long": None},
    }
    variants: dict[str, list[Mixer]] = {f"regla, {name}": [("regla", options)] * 2 for name, options in regla.items()}
    variants |= {f"chela, {name} convolutions": [("chela", options)] * 2 for name, options in chela.items()}
    return _on_digits(variants, seed, recipe)


def larger_grids(seed: int, recipe: Recipe) -> Values:
    """Accuracy on the grid of the training pictures and on larger ones."""
    sizes: dict[str, Any] = {"img_size": 16, "stem": partial(conv_stem, patch_size=2)}
    builds: dict[str, Callable[[], nn.Module]] = {
        "tapa": partial(network, [("tapa", {})] * 2, position=False, **sizes),
        "no positions": partial(network, [("softmax", {})] * 2, position=False, **sizes),
        "learnt positions": partial(network, [("softmax", {})] * 2, **sizes),
        "rotary": rotary,
    }
    task, tests = _canvases(seed)
    found: Values = {}
    for name, build in builds.items():
        model = _trained(build, task, recipe, seed)
        found |= {f"{name}, {grid}": accuracy(model, test) for grid, test in tests.items()}
    return found


def denoised_grids(seed: int, recipe: Recipe) -> Values:
    """One network with rotary embeddings on larger grids, as it was trained and with DoPE afterwards."""
    task, tests = _canvases(seed)
    model = _trained(rotary, task, recipe, seed)
    found = {f"rotary, {grid}": accuracy(model, test) for grid, test in tests.items()}
    draw = torch.Generator().manual_seed(seed)
    at_random: list[list[int]] = [torch.randint(4, (1,), generator=draw).tolist() for _ in range(2)]
    chosen: dict[str, Any] = {"dope": 1, "any heads": at_random}
    for name, number in chosen.items():
        for grid, test in tests.items():
            with denoise_rope(model, [test[0][:50]], heads=number, train_grid=(8, 8)):
                found[f"rotary, {name}, {grid}"] = accuracy(model, test)
    return found


def _canvases(seed: int) -> tuple[tasks.Task, dict[str, tasks.Task]]:
    """Training pictures of 8 x 8 patches, and test pictures by their grids."""
    tests = {f"{side // 2} x {side // 2}": tasks.digits_on_canvas("test", side, 200, 1000) for side in (16, 32, 48)}
    return tasks.digits_on_canvas("train", 16, 4000, seed), tests


def pairs(seed: int, recipe: Recipe) -> Values:
    """Accuracy, and where the patches of one digit look in the other picture."""
    pictures, answers, _ = tasks.digit_pairs("train", 6000, seed)
    images, asked, there = tasks.digit_pairs("test", 600, 1000)
    found: Values = {}
    for name, joint in {"co-attention": True, "two means": False}.items():
        model: Any = _trained(partial(TwoPictures, joint), (pictures, answers), recipe, seed)
        found[name] = accuracy(model, (images, asked))
        if joint:
            first, second = there.flatten(2).unbind(1)
            with torch.no_grad():
                taken = (model.rows(images) @ second.unsqueeze(-1)).squeeze(-1)
            found["weight from digit to digit"] = 100 * ((taken * first).sum() / first.sum()).item()
    return found | {"area of the digit": 100 * there.mean().item()}
