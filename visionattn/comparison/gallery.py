"""What every mechanism makes of one photograph: its gates, its attention, or what it changes there.

    python -m visionattn.comparison.gallery --out docs/results/gallery.npz

Each mechanism stands in the network that all of its kind share in the diagnostics and learns, for seconds, to tell
which of thirteen photographs a piece comes from. The photograph that is shown, Chelsea the cat (scikit-image, CC0 by
Stefan van der Walt), is none of them. The file holds small maps, no picture; the site lays them over the photograph.
Networks so small show of which kind the maps of a mechanism are, not what they are worth.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import nn

from visionattn.catalog import Card, cards
from visionattn.data.synthetic.composing import load_photographs, square_piece
from visionattn.data.synthetic.diagnostics import Scenes
from visionattn.data.synthetic.digits import PHOTOGRAPHS
from visionattn.explain import capture, gates, mixer_weights
from visionattn.testing.pictures import PLACE, photograph
from visionattn.utils.files import replacing

from .diagnostics.recipe import RECIPES, Effort, Recipe
from .diagnostics.rows import Host, Row
from .diagnostics.training import evaluate, fit, to_inputs

__all__ = ["RECIPE", "Shown", "build", "look", "pieces", "run", "save"]

RECIPE = replace(RECIPES["small"], size=48, train=4000, test=195, batch=32, efforts={"cnn": {"": Effort(80, 1)}})
_SEED = 0
# Side of the photograph for the network: twice a training piece, so that maps are finer.
_SIDE = 96
# The largest side of a stored map.
_FINEST = 24


@dataclass(frozen=True)
class Shown:
    """Maps of one mechanism.

    Args:
        maps: Where in the network -> what is shown, and the map `(h, w)`: `gate` (the product of a block's factors, the
            mean over channels), `weights` (what the marked position takes from each, the mean over heads), `seeds`
            (what learnt seeds take from each), `influence` (how much the marked position's result depends on each, the
            norm of the derivative) or `change` (by how much a block changes each position, as a share of what came in).
        accuracy: On pieces that were not trained on.
    """

    maps: dict[str, tuple[str, np.ndarray]]
    accuracy: float


class _Pooled(nn.Module):
    """A CNN's last map whose positions a head pools. `(B, 3, H, W) -> (B, classes)`."""

    def __init__(self, trunk: Any, pool: nn.Module, classes: int) -> None:
        super().__init__()
        self.trunk, self.pool = trunk, pool
        self.fc = nn.Linear(trunk.num_features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(self.pool(self.trunk.forward_features(x).flatten(2).transpose(1, 2)))
        return found


class _Call(NamedTuple):
    """What went into a module and what came out, with the derivative between them."""

    x: torch.Tensor
    y: torch.Tensor
    grid: tuple[int, int] | None


@cache
def pieces(split: str, count: int, size: int) -> Scenes:
    """Square pieces of photographs; the label says of which. Those of a split are no pieces of the other.

    Args:
        split: `train` or `test`, which differ in their pieces, not in the photographs.
        count: How many.
        size: Side in pixels.
    """
    sources = load_photographs(PHOTOGRAPHS["train"])
    rng = np.random.default_rng(["train", "test"].index(split))
    labels = np.arange(count) % len(sources)
    images = np.stack([square_piece(sources[label], size, rng) for label in labels])
    nowhere = np.zeros((count, 0, 3), np.int16)
    return Scenes(images, labels, np.zeros(images.shape[:3], bool), nowhere)


def build(card: Card, recipe: Recipe) -> tuple[nn.Module, Host] | None:
    """The untrained network that shows a mechanism, and its host; none if it needs more than a photograph.

    Args:
        card: The mechanism.
        recipe: Sizes of the networks.
    """
    classes = len(PHOTOGRAPHS["train"])
    plain = partial(timm.create_model, **recipe.cnn)
    if card.name == "pkcam":  # sees earlier layers of its own network, whose widths divide those that follow
        return timm.create_model("va_resnet18n_pkcam", num_classes=classes), "cnn"
    if not card.standalone:
        # Several mixers that take turns need no more than the map, either.
        known = card.kind == "mixer" and card.mixers is not None and not card.further_inputs
        return (Row("pyramid", card.name).build(recipe, classes), "pyramid") if known else None
    if card.kind == "frontend":
        return nn.Sequential(card.constructor(3), plain(num_classes=classes)), "cnn"
    if card.kind == "head":
        trunk = plain(num_classes=0)
        return _Pooled(trunk, card.constructor(trunk.num_features), classes), "cnn"
    if card.kind == "plugin":
        return Row("cnn", card.name).build(recipe, classes), "cnn"
    host: Host = "columnar" if card.columnar and not card.pyramid else "pyramid"
    return Row(host, card.name).build(recipe, classes), host


def run(card: Card, recipe: Recipe = RECIPE) -> Shown | None:
    """Trains the network of a mechanism and looks at the photograph with it; none if it needs more than that.

    Args:
        card: The mechanism.
        recipe: Sizes of the networks and of the training.
    """
    torch.manual_seed(_SEED)
    built = build(card, recipe)
    if built is None:
        return None
    model, host = built
    steps = _steps(recipe)
    fit(model, pieces("train", recipe.train, recipe.size), recipe, steps, recipe.rates[host], _SEED)
    accuracy = float(evaluate(model, pieces("test", recipe.test, recipe.size), recipe).mean())
    maps = look(card, model.eval(), to_inputs(photograph(_SIDE)[None], "cpu"))
    ends = dict.fromkeys((next(iter(maps)), [*maps][-1]))
    return Shown({where: (maps[where][0], _stored(maps[where][1])) for where in ends}, accuracy)


def look(card: Card, model: nn.Module, x: torch.Tensor) -> dict[str, tuple[str, torch.Tensor]]:
    """What a mechanism makes of a picture in each place of its network: module -> what it is, and the map `(h, w)`.

    Args:
        card: The mechanism.
        model: A network with it, in evaluation mode.
        x: The picture, `(1, 3, H, W)`.
    """
    if card.kind == "head":
        with torch.no_grad():
            tokens = model.trunk.forward_features(x)  # type: ignore[union-attr, operator]
            weights = model.pool.weights(tokens.flatten(2).transpose(1, 2))  # type: ignore[union-attr, operator]
        return {"pool": ("seeds", weights[0].mean((0, 1)).unflatten(0, tokens.shape[2:]))}
    if card.kind == "mixer":
        return _look_at_mixers(model, x)
    try:
        found = {name: _gate(factors) for name, factors in gates(model, x).items()}
    except ValueError:  # it has none
        found = {}
    maps = {name: ("gate", gate) for name, gate in found.items() if min(gate.shape) > 1}
    if maps:
        return maps
    own = [name for name, module in model.named_modules() if isinstance(module, _class_of(card))]
    for name, call in _calls(model, x, own).items():
        share = (call.y - call.x).norm(dim=1) / call.x.norm(dim=1).clamp_min(1e-6)
        maps[name] = ("change", share[0].detach())
    return maps


def _look_at_mixers(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[str, torch.Tensor]]:
    """The marked position's weights where a mixer has some between positions, what influences it elsewhere."""
    mixers = _mixers(model)
    calls = _calls(model, x, mixers)
    try:
        matrices = mixer_weights(model, x)
    except ValueError:  # none of them says its weights
        matrices = {}
    rows = {name: _row(matrices[name], _grid(call)) for name, call in calls.items() if name in matrices}
    found = {name: row for name, row in rows.items() if row is not None}
    if found.keys() != calls.keys():
        found = _captured(model, x, mixers) | found
    return {n: ("weights", found[n]) if n in found else ("influence", _influence(c)) for n, c in calls.items()}


def _row(matrix: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor | None:
    """The marked position's row of `(1, heads, N, M)`, the mean over the heads, on the grid of the keys."""
    if matrix.ndim != 4 or matrix.shape[2] != grid[0] * grid[1]:
        return None
    row = matrix[0, :, _cell(grid)].abs().mean(0)
    ratio = round((matrix.shape[2] / matrix.shape[3]) ** 0.5)
    side = grid[0] // ratio, grid[1] // ratio
    return row.unflatten(0, side) if row.numel() == side[0] * side[1] else None


def _captured(model: nn.Module, x: torch.Tensor, mixers: Sequence[str]) -> dict[str, torch.Tensor]:
    """The marked position's probabilities in the attentions of mixers that have nothing but attention of positions."""
    try:
        with torch.no_grad(), capture(model, keep=("probs",)) as record:
            model(x)
    except ValueError:  # no softmax anywhere
        return {}
    place = (PLACE[0] * x.shape[2], PLACE[1] * x.shape[3])
    found = {}
    for name in mixers:
        own = [layer.index for layer in record if f"{layer.path}.".startswith(f"{name}.")]
        if own and all(map(record.has, own)):
            rows = [record.map(index, place)[0].mean(0) for index in own]
            if len({row.shape for row in rows}) == 1:
                found[name] = torch.stack(rows).mean(0)
    return found


def _mixers(model: nn.Module) -> list[str]:
    """Names of the outermost mixers of a network."""
    found: list[str] = []
    for name, module in model.named_modules():
        home = type(module).__module__
        inside = any(name.startswith(f"{other}.") for other in found) or "position" in name.split(".")
        if home.startswith("visionattn.mixers.") and not inside:
            found.append(name)
    return found


def _calls(model: nn.Module, x: torch.Tensor, names: Sequence[str]) -> dict[str, _Call]:
    """The last call of each of some modules in a forward pass, in order; the derivative goes no further back."""
    calls: dict[str, _Call] = {}
    modules = {name: model.get_submodule(name) for name in names}
    running: set[str] = set()

    def listen(name: str, module: Any, inner: str) -> None:
        own = getattr(module, inner)

        def noted(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if name in running:  # one form of a mixer calls the other
                return own(tokens, *args, **kwargs)
            running.add(name)
            given = tokens.detach().clone().requires_grad_()
            result = own(given, *args, **kwargs)
            running.remove(name)
            grid = kwargs.get("grid", args[0] if args and isinstance(args[0], tuple) else None)
            # A copy: hosts add to it in place.
            calls[name] = _Call(given, (result[0] if isinstance(result, tuple) else result).clone(), grid)
            return result

        setattr(module, inner, noted)

    wrapped = []
    for name, module in modules.items():
        # A mixer whose tokens come as a sequence is called by another name.
        for inner in [inner for inner in ("forward_tokens", "forward") if hasattr(module, inner)]:
            wrapped.append((module, inner))
            listen(name, module, inner)
    try:
        model(x)
    finally:
        for module, inner in wrapped:
            vars(module).pop(inner, None)
    return calls


def _grid(call: _Call) -> tuple[int, int]:
    if call.x.ndim == 4:
        return call.x.shape[1], call.x.shape[2]
    side = round(call.x.shape[1] ** 0.5)
    return call.grid or (side, side)


def _cell(grid: tuple[int, int]) -> int:
    """Number of the marked position on a grid."""
    return int(PLACE[0] * grid[0]) * grid[1] + int(PLACE[1] * grid[1])


def _influence(call: _Call) -> torch.Tensor:
    """The norm of the derivative of the marked position's result with respect to each position. `-> (h, w)`."""
    grid = _grid(call)
    result = call.y.flatten(0, -2)[_cell(grid)]
    squares = torch.zeros(grid)
    for value in result:
        (slope,) = torch.autograd.grad(value, call.x, retain_graph=True)
        squares += slope.square().sum(-1).reshape(grid)
    return squares.sqrt()


def _gate(factors: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a block multiplies each position by, the mean over channels. `-> (h, w)`."""
    product = factors.get("gate")
    if product is None:
        product = torch.ones(())
        for factor in factors.values():
            product = product * factor
    return product[0].float().mean(0) if product.ndim == 4 else torch.zeros(1, 1)


def _class_of(card: Card) -> type:
    cls: Any = card.factory
    found: type = getattr(cls, "func", cls)
    return found


def _stored(found: torch.Tensor) -> np.ndarray:
    sides = (min(found.shape[0], _FINEST), min(found.shape[1], _FINEST))
    smaller = nn.functional.adaptive_avg_pool2d(found.detach().float()[None, None], sides)[0, 0]
    return smaller.numpy()


def save(shown: dict[str, Shown], recipe: Recipe, path: Path) -> None:
    """Writes maps and what is known of them; a file that is there keeps those of other mechanisms.

    Args:
        shown: By `<kind>/<name>` of the mechanism.
        recipe: What the networks were trained by.
        path: A `.npz` file.

    Raises:
        ValueError: If the file that is there was made by another recipe.
    """
    about: dict[str, Any] = {
        "steps": _steps(recipe),
        "batch": recipe.batch,
        "size": recipe.size,
        "place": [*PLACE],
    }
    facts: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for name, one in shown.items():
        kinds = {where: what for where, (what, _) in one.maps.items()}
        facts[name] = {"accuracy": round(one.accuracy, 4), "maps": kinds}
        arrays |= {f"{name}/{where}": found for where, (_, found) in one.maps.items()}
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            before = json.loads(str(kept["about"]))
            if {key: before[key] for key in about} != about:
                raise ValueError(f"{path} was made by another recipe; write to another file, or remove it")
            facts = {**before["mechanisms"], **facts}
            others = [key for key in kept.files if key != "about" and key.rpartition("/")[0] not in shown]
            arrays |= {key: kept[key] for key in others}
    about["mechanisms"] = dict(sorted(facts.items()))
    arrays = dict(sorted(arrays.items()))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, about=json.dumps(about), **arrays)


def _steps(recipe: Recipe) -> int:
    """Training steps, the same in every host here."""
    return recipe.efforts["cnn"][""].steps


def _run_all(chosen: Sequence[Card], recipe: Recipe) -> Iterator[tuple[str, Shown]]:
    for card in chosen:
        started = time.process_time()
        shown = run(card, recipe)
        name = f"{card.kind}/{card.name}"
        if shown is None:
            print(f"{name}: needs more than a photograph", flush=True)
            continue
        seconds = time.process_time() - started
        places = ", ".join(f"{what} of {where} {found.shape}" for where, (what, found) in shown.maps.items())
        print(f"{name}: {places}; {100 * shown.accuracy:.0f} %, {seconds:.0f} s", flush=True)
        yield name, shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all mechanisms, or some, and writes their maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="mechanisms; all without it")
    parser.add_argument("--steps", type=int, default=_steps(RECIPE))
    parser.add_argument("--out", type=Path, default=Path("gallery.npz"))
    options = parser.parse_args(arguments)
    known = list(cards())
    if unknown := set(options.names) - {card.name for card in known}:
        parser.error(f"unknown mechanisms: {', '.join(sorted(unknown))}")
    recipe = replace(RECIPE, efforts={"cnn": {"": Effort(options.steps, 1)}})
    chosen = [card for card in known if not options.names or card.name in options.names]
    for name, shown in _run_all(chosen, recipe):
        save({name: shown}, recipe, options.out)


if __name__ == "__main__":
    main()
