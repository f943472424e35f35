"""The pictures of the interactive page in the documentation: `python -m visionattn.testing.page_pictures FOLDER`.

Three networks: trained ones with shifted windows and with a halo on a digit of scikit-learn, and a plain transformer on
a photograph of scikit-image. There are no packaged weights of photographs for the last, so its own start is used, with
queries and keys scaled up until heads differ: it shows the page, not what a network has learnt.
"""

import argparse
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

import visionattn
from visionattn import explain

from .browser import open_page

__all__ = ["draw_pages"]

_SIZE = (1000, 700)
_COLOURS = 96  # of a palette, which keeps a picture below 150 kB


def draw_pages(folder: Path) -> Iterator[Path]:
    """Writes the pictures, a click into each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text, layer, (across, down) in _pages():
        with tempfile.TemporaryDirectory() as scratch:
            page = Path(scratch) / "page.html"
            page.write_text(text, encoding="utf-8")
            with open_page(page, size=_SIZE, fragment=f"layer={layer}") as tab:
                tab.wait("document.body.dataset.ready")
                tab.click(*tab.place("#picture", across, down))
                tab.move(*tab.place("#picture", across + 0.05, down + 0.07))
                shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
        path = folder / f"explain-{name}.png"
        shot.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        yield path


def _pages() -> Iterator[tuple[str, str, int, tuple[float, float]]]:
    """Name, page, layer and where to click."""
    from skimage.data import chelsea
    from sklearn.datasets import load_digits

    digit = Image.fromarray(np.kron(load_digits().images[8] * 15, np.ones((4, 4))).astype(np.uint8)).convert("RGB")
    for name, layer, place in (("swin", 1, (0.55, 0.45)), ("halonet", 1, (0.5, 0.3))):
        model: Any = timm.create_model(f"va_stm_{name}_nano.digits", pretrained=True).eval()
        settings = timm.data.resolve_model_data_config(model)
        x = timm.data.create_transform(**settings)(digit)[None]
        with torch.no_grad():
            scores = model(x)[0].softmax(0)
        note = f"{model.pretrained_cfg['label_names'][scores.argmax()]} {100 * scores.max():.1f} %"
        seen = explain.as_seen(x[0], settings["mean"], settings["std"])
        yield name, _page(model, x, seen, f"va_stm_{name}_nano.digits", note), layer, place
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224").eval()
    for key, weights in vit.state_dict().items():
        if key.endswith("attn.qkv.weight"):
            weights[: 2 * 192] *= 6
    photo = np.asarray(Image.fromarray(chelsea()[:, 75:375]).resize((224, 224)))
    x = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    yield "vit", _page(vit, x, photo, "vit_tiny_patch16_224 (not trained)", ""), 2, (0.4, 0.4)


def _page(model: torch.nn.Module, x: torch.Tensor, seen: np.ndarray, title: str, note: str) -> str:
    with torch.no_grad(), explain.capture(model, keep=("probs",)) as record:
        model(x)
    return explain.page(record, picture=seen, title=title, note=note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path(visionattn.__file__).parents[1] / "docs" / "images"
    )
    for written in draw_pages(parser.parse_args().folder):
        print(written, f"{written.stat().st_size / 1000:.0f} kB")
