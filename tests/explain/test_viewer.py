"""The interactive page: what is in it equals the maps of the record, and a browser shows it."""

import json
import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from explained import small

from visionattn import explain
from visionattn.testing.browser import BROWSERS, find_browser, open_page

NETWORKS = (
    "vit_tiny_patch16_224", "vit_small_patch16_dinov3", "cait_xxs24_224", "swin_tiny_patch4_window7_224", "davit_tiny",
    "twins_svt_small", "mvitv2_tiny", "va_stm_halonet_nano", "va_stm_boat_nano", "va_stm_pvt_nano",
)  # fmt: skip
needs_browser = pytest.mark.skipif(
    find_browser() is None, reason=f"none of {', '.join(BROWSERS)} is installed; .ci/run installs one where it may"
)


def recorded(name, keep=("probs",)):
    model, x = small(name)
    with torch.no_grad(), explain.capture(model, keep=keep) as record:
        model(x)
    return record


def content(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def looked_up(data, layer, query, head):
    """What the page's script finds, written a second time: `(weights, cells that are seen)`."""
    parts = {key: np.frombuffer(b64decode(layer[key]), "<i4") for key in ("lookup", "where")}
    codes = np.frombuffer(b64decode(layer["codes"]), np.uint8)
    if data["bits"] == 4:
        codes = np.stack([codes & 15, codes >> 4], 1).flatten()
    (rows, columns), prefix = layer["queryGrid"], data["prefix"]
    if isinstance(query, int):
        cell = rows * columns + query
    else:
        y, x = ((at + 0.5) / side for at, side in zip(query, data["size"], strict=True))
        cell = int(y * rows) * columns + int(x * columns)
    lookup = parts["lookup"].reshape(layer["groups"], rows * columns + prefix)
    group = head if layer["groups"] > 1 else 0
    window, row = divmod(int(lookup[group, cell]), layer["queries"])
    places = parts["where"].reshape(layer["groups"], layer["windows"], layer["keys"])[group, window]
    shape = (layer["windows"], layer["heads"], layer["queries"])
    largest = np.frombuffer(b64decode(layer["largest"]), "<f4").reshape(shape)[window, head, row]
    code = codes[: np.prod(shape) * layer["keys"]].reshape(*shape, layer["keys"])[window, head, row]
    area = np.prod(layer["keyGrid"])
    values, seen = np.zeros(area), np.zeros(area, bool)
    inside = (places >= 0) & (places < area)
    np.add.at(values, places[inside], (largest * (code / (2 ** data["bits"] - 1)) ** 2)[inside])
    seen[places[inside]] = True
    return values.reshape(layer["keyGrid"]), seen.reshape(layer["keyGrid"]), largest


@pytest.mark.parametrize("name", NETWORKS)
def test_the_page_holds_the_maps_of_the_record(name):
    record = recorded(name)
    data = content(explain.page(record, image=1))
    shown = {layer["index"]: layer for layer in data["layers"]}
    assert list(shown) == [layer.index for layer in explain.spatial_layers(record)]
    height, width = record.images.shape[-2:]
    queries = [(0, 0), (height - 1, width - 1), (height // 3, width // 2), (height // 2, 5)]
    queries += range(data["prefix"])
    compared = 0
    for number, layer in shown.items():
        for query in queries:
            try:
                expected = record.map(number, query)[1].numpy()
            except ValueError:  # only extra tokens ask here, or none does
                continue
            for head in range(layer["heads"]):
                values, seen, largest = looked_up(data, layer, query, head)
                repeats = 2 if name == "va_stm_boat_nano" else 1  # clusters may hold a key twice
                assert values == pytest.approx(expected[head], abs=float(repeats * largest / 255 + 1e-7))
                assert not expected[head][~seen].any()
                compared += 1
    assert compared >= 4 * len(shown) or name == "cait_xxs24_224"


def test_windows_leave_the_rest_unseen():
    record = recorded("swin_tiny_patch4_window7_224")
    data = content(explain.page(record))
    _, seen, _ = looked_up(data, data["layers"][0], (0, 0), 0)
    expected = np.zeros((24, 24), bool)
    expected[:6, :6] = True
    assert (seen == expected).all()


def test_a_smaller_page_has_four_bits_and_a_still_smaller_one_is_refused():
    record = recorded("vit_tiny_patch16_224")
    full = explain.page(record)
    data = content(explain.page(record, limit=len(full.encode()) / 1e6 - 1e-4))
    assert data["bits"] == 4
    values, _, largest = looked_up(data, data["layers"][1], (20, 40), 2)
    assert values == pytest.approx(record.map(1, (20, 40))[0, 2].numpy(), abs=float(largest / 15))
    with pytest.raises(ValueError, match=r"would have 0\.0 MB, limit is 0\.01: choose fewer of its 2 layers"):
        explain.page(record, limit=0.01)
    assert len(explain.page(record, layers=[1]).encode()) < len(full.encode())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": 2}, r"image must lie in 0\.\.1, got 2"),
        ({"layers": [7]}, "layers must be of those that are held and have positions, 0, 1, got 7"),
        ({"limit": 0}, "limit must be positive, got 0"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        explain.page(recorded("vit_tiny_patch16_224"), **arguments)


def test_channel_attention_is_left_out():
    record = recorded("xcit_nano_12_p16_224")  # two channel attentions, then two of the class token
    assert [layer["index"] for layer in content(explain.page(record))["layers"]] == [2, 3]
    with pytest.raises(ValueError, match="layers must be of those that are held and have positions, 2, 3, got 0"):
        explain.page(record, layers=[0])


@pytest.fixture
def vit(tmp_path):
    """A record with its page, the title of which tries to end its script."""
    record = recorded("vit_tiny_patch16_224")
    path = tmp_path / "page.html"
    path.write_text(explain.page(record, title="</script><b>cat & dog</b>", note="3 (97.2 %)"), encoding="utf-8")
    return record, path


def shown_by(tab, head):
    """The map of a head that the page has drawn last."""
    return np.array(tab.evaluate(f"[...document.querySelectorAll('#heads canvas')[{head}].map.values]"))


@needs_browser
def test_a_click_shows_where_every_head_looks(vit):
    record, path = vit
    with open_page(path) as tab:
        tab.wait("document.body.dataset.ready")
        tab.evaluate("addEventListener('click', event => document.body.dataset.trusted = event.isTrusted, true)")
        tab.click(*tab.place("#picture", across=0.3, down=0.65))
        state = tab.evaluate("({...document.body.dataset})")
        assert state["trusted"] == "true"  # made by the browser out of the mouse, not by a script
        assert state["layer"] == "1" and state["query"] == "row 2, column 1 of 4 x 4"
        expected = record.map(1, (41, 19))[0].flatten(1).numpy()
        for head in range(3):
            assert shown_by(tab, head) == pytest.approx(expected[head], abs=float(expected[head].max() / 255))
        average = np.array(tab.evaluate("[...document.getElementById('picture').map.values]"))
        assert average == pytest.approx(expected.mean(0), abs=float(expected.max() / 255))
        # The pixels, too: the cell of the largest weight has the colour of the scale's end, half over the picture.
        at = np.divmod(average.argmax(), 4)
        pixel = tab.evaluate(
            "document.getElementById('opacity').value = 100, document.getElementById('opacity').dispatchEvent("
            "new Event('input')), [...document.getElementById('picture').getContext('2d').getImageData("
            f"{at[1] * 120 + 60}, {at[0] * 120 + 60}, 1, 1).data]"
        )
        assert pixel == [253, 231, 37, 255]
        # Heads off: the mean is of the rest.
        tab.click(*tab.place("#heads figure:nth-child(1) input"))
        tab.press("1")
        average = np.array(tab.evaluate("[...document.getElementById('picture').map.values]"))
        assert average == pytest.approx(expected[2], abs=float(expected[2].max() / 255))
        tab.click(*tab.place("#none"))
        assert tab.evaluate("document.getElementById('picture').map") is None
        tab.click(*tab.place("#all"))
        assert tab.evaluate("document.querySelectorAll('#heads input:checked').length") == 3
        # The tooltip says the weight.
        tab.move(*tab.place("#heads figure:nth-child(2) canvas", across=0.9, down=0.1))
        weight = f"{100 * expected[1][3]:.3g}"
        assert tab.evaluate("document.getElementById('tip').textContent").startswith("row 0, column 3: ")
        assert float(tab.evaluate("document.getElementById('tip').textContent").split()[-2]) == pytest.approx(
            float(weight), abs=float(100 * expected[1].max() / 255 + 0.01)
        )
        assert tab.evaluate("document.querySelector('h1').textContent") == "</script><b>cat & dog</b>"
        assert tab.evaluate("document.title") == "</script><b>cat & dog</b>"
        assert not tab.errors and tab.addresses == [path.as_uri()]  # nothing is fetched


@needs_browser
def test_keys_layers_tokens_and_addresses(vit):
    record, path = vit
    with open_page(path, fragment="layer=0&patch=1,3") as tab:
        tab.wait("document.body.dataset.ready")

        def state():
            return tab.evaluate("[document.body.dataset.layer, document.body.dataset.query, location.hash]")

        assert state() == ["0", "row 1, column 3 of 4 x 4", "#layer=0&patch=1,3"]
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "PageDown"):
            tab.press(key)
        assert state() == ["1", "row 2, column 2 of 4 x 4", "#layer=1&patch=2,2"]
        tab.click(*tab.place("#layer", across=0.02))
        assert state()[0] == "0"
        tab.click(*tab.place("#tokens button"))
        assert state()[1:] == ["class token", "#layer=0&token=0"]
        expected = record.map(0, 0)[0].flatten(1).numpy()
        assert shown_by(tab, 1) == pytest.approx(expected[1], abs=float(expected[1].max() / 255))
        given = 1 - expected.sum(1).mean()  # to the class token itself
        found = re.search(
            r"([\d.]+) % to the class token", tab.evaluate("document.getElementById('status').textContent")
        )
        assert float(found[1]) == pytest.approx(100 * given, abs=0.5)
        tab.click(*tab.place("#more summary"))
        tab.wait("document.querySelectorAll('#overview canvas').length == 6")
        tab.click(*tab.place("#overview tr:nth-child(2) td:nth-child(3) canvas"))
        assert state()[0] == "1" and not tab.errors


@needs_browser
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_what_channels_add(name, tmp_path):
    record = recorded(name, keep=("probs", "q", "k"))
    path = tmp_path / "page.html"
    path.write_text(explain.page(record, channels=True), encoding="utf-8")
    height, width = record.images.shape[-2:]
    with open_page(path, fragment="layer=1") as tab:
        tab.wait("document.body.dataset.ready")
        tab.click(*tab.place("#picture", across=0.3, down=0.4))
        query = (int(0.4 * height), int(0.3 * width))
        window, row = (found[0, 0].item() for found in record.positions(1).find(query, (height, width)))
        keys = record.positions(1).keys
        key = keys.index[0, window, 0].argmin().item() if name.startswith("vit") else 7
        key = 3 if keys.index[0, window, 0, key] < 0 else key
        cell = keys.index[0, window, 0, key].item()
        expected = record[1].q[0, window, 0, row] * record[1].k[0, window, 0, key]
        found = tab.evaluate(f"products(layers[1], 0, {cell})")
        error = 0.012 * record[1].q[0, window, 0, row].abs().max() * record[1].k[0, window, 0, key].abs().max()
        assert found == pytest.approx(expected.tolist(), abs=error.item())
        rows, columns = keys.grid
        across, down = (cell % columns + 0.5) / columns, (cell // columns + 0.5) / rows
        tab.move(*tab.place("#heads canvas", across, down))
        text = tab.evaluate("document.getElementById('product').textContent")
        assert text.startswith("head 0: ") and "most by channel" in text
        assert float(text.split()[2]) == pytest.approx(sum(found), rel=1e-2, abs=1e-3)
        assert not tab.errors


@needs_browser
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "cait_xxs24_224", "davit_tiny"])
def test_other_networks_on_a_narrow_screen(name, tmp_path):
    record = recorded(name)
    path = tmp_path / "page.html"
    path.write_text(explain.page(record), encoding="utf-8")
    height, width = record.images.shape[-2:]
    with open_page(path, size=(360, 640)) as tab:
        tab.wait("document.body.dataset.ready")
        for layer in explain.spatial_layers(record):
            tab.evaluate(f"change(layers.findIndex(layer => layer.index === {layer.index}))")
            tab.click(*tab.place("#picture", across=0.3, down=0.4))
            if name == "cait_xxs24_224" and layer.shape[3] == 1:  # class attention: the patches do not ask
                assert "choose an extra token" in tab.evaluate("document.getElementById('status').textContent")
                tab.click(*tab.place("#tokens button"))
                expected = record.map(layer.index, 0)[0]
            else:
                expected = record.map(layer.index, (int(0.4 * height), int(0.3 * width)))[0]
            for head, values in enumerate(expected.flatten(1).numpy()):
                assert shown_by(tab, head) == pytest.approx(values, abs=float(values.max() / 255 + 1e-7)), layer.path
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        assert not tab.errors
