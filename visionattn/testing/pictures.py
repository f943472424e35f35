"""Pictures of mechanisms for their pages: the maps of docs/results/gallery.npz, laid over the photograph.

`python -m visionattn.comparison.gallery` makes the maps. The photograph is Chelsea the cat of scikit-image, which its
photographer, Stefan van der Walt, has given to the public domain (CC0).
"""

import io
import json
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from visionattn.catalog import Card
from visionattn.explain import overlay

__all__ = ["MAPS", "PLACE", "photograph", "picture"]

MAPS = Path(__file__).parents[2] / "docs" / "results" / "gallery.npz"
# The place whose attention is shown, the cat's eye: y and x as shares of the sides.
PLACE = (0.37, 0.27)
_SIDE = 192
# What the numbers of a map are.
_KINDS = {
    "gate": "what the block multiplies each position by, the mean over its channels",
    "weights": "what the marked position takes from each position, the mean over the heads",
    "seeds": "what the learnt seed takes from each position, the mean over the heads",
    "influence": "how much the result at the mark depends on each position (the norm of the derivative)",
    "change": "by which share the block changes each position",
}


def photograph(side: int) -> np.ndarray:
    """The cat's face, `(side, side, 3)` uint8."""
    import skimage.data

    left, size = 80, 300
    face = Image.fromarray(skimage.data.chelsea()[:size, left : left + size])
    return np.array(face.resize((side, side), Image.Resampling.BOX))


def picture(card: Card) -> list[str]:
    """Markdown of the section with the picture of a mechanism; none if it has none."""
    about, arrays = _stored()
    name = f"{card.kind}/{card.name}"
    facts = about["mechanisms"].get(name)
    if facts is None:
        return []
    kinds = set(facts["maps"].values())
    marked = bool(kinds & {"weights", "influence"})
    seen = _marked(photograph(_SIDE)) if marked else photograph(_SIDE)
    panels = [_figure(seen, "the photograph" + (", and the mark" if marked else ""))]
    for where, kind in facts["maps"].items():
        values = arrays[f"{name}/{where}"]
        drawn = overlay(photograph(_SIDE), torch.from_numpy(values).float(), smooth=False, opacity=0.7)
        low, high = (f"{float(value):.2g}" for value in (values.min(), values.max()))
        rows, columns = values.shape
        title = f"<code>{where}</code>, {rows} x {columns}"
        span = f"from {low} (dark) to {high} (bright)" if low != high else f"{low} everywhere"
        panels.append(_figure(drawn, f"{title}: {kind}, {span}"))
    trained = (
        f"A small network, trained for {about['steps']} steps to tell which of 13 other photographs a piece of "
        f"{about['size']} x {about['size']} pixels comes from ({100 * facts['accuracy']:.0f} % right on pieces that it "
        "was not trained on). It shows of which kind the maps are, not what they are worth in a large network."
    )
    source = "Photograph: Chelsea, from scikit-image, CC0 by Stefan van der Walt. Made by"
    return [
        "## On a photograph",
        "",
        *(f"- **{kind}**: {_KINDS[kind]}" for kind in sorted(kinds)),
        "",
        f'<div class="gallery">{"".join(panels)}</div>',
        "",
        f"{trained} {source} `python -m visionattn.comparison.gallery`.",
        "",
    ]


@cache
def _stored() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(MAPS, allow_pickle=False) as file:
        about: dict[str, Any] = json.loads(str(file["about"]))
        return about, {name: file[name] for name in file.files if name != "about"}


def _marked(image: np.ndarray) -> np.ndarray:
    drawn = Image.fromarray(image)
    pen = ImageDraw.Draw(drawn)
    y, x = (round(share * side) for share, side in zip(PLACE, image.shape, strict=False))
    for colour, width in (("black", 5), ("white", 2)):
        pen.ellipse((x - 9, y - 9, x + 9, y + 9), outline=colour, width=width)
    return np.asarray(drawn)


def _figure(image: np.ndarray, caption: str) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=85)
    source = f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
    return f'<figure><img alt="{caption.replace("<code>", "").replace("</code>", "")}" src="{source}">' + (
        f"<figcaption>{caption}</figcaption></figure>"
    )
