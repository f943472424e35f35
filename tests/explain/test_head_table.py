"""The table of heads of any network: closed forms, plain transformers, windows, streaming."""

import math

import pytest
import torch
from explained import small

from visionattn import explain
from visionattn.explain.head_table import _numbers


def recorded(name):
    model, x = small(name)
    with torch.no_grad(), explain.capture(model, keep=("probs",)) as record:
        model(x)
    return record


def test_agrees_with_the_statistics_of_plain_transformers():
    record = recorded("vit_tiny_patch16_224")
    table = explain.HeadTable()
    table.update(record)
    rows = table.compute()
    assert [(row["layer"], row["head"]) for row in rows] == [(i, head) for i in range(2) for head in range(3)]
    probs = torch.cat([layer.probs for layer in record], 1)
    known = explain.statistics(record)
    patches = probs[..., 1:, :]  # the rows of the class token do not count here
    expected = {
        "distance": known["distance"].mean(0) * 3 / 4,  # its square goes from centre to centre of the 4 x 4 patches
        "entropy": torch.special.entr(patches).sum(-1).mean((0, -1)),
        "peak": patches.amax(-1).mean((0, -1)),
        "extra": known["patch_to_cls"].mean(0),
        "sinks": (patches.mean(-2) > 10 / 17).sum(-1).float().mean(0),
    }
    for name, values in expected.items():
        assert [row[name] for row in rows] == pytest.approx(values.flatten().tolist(), rel=1e-5), name
    for row in rows:
        assert row["entropy_normalised"] == pytest.approx(row["entropy"] / math.log(17))


def test_closed_forms():
    record = recorded("swin_tiny_patch4_window7_224")
    layer, positions = record[1], record.positions(1)  # shifted: some keys are masked, all are in the window
    uniform = torch.full(layer.shape, 1 / 36)
    layer.raw["probs"] = layer.layout.undo(uniform, layer.raw["probs"].shape)
    distance, entropy, normalised, peak, extra, sinks = _numbers(layer, positions)[0, 0].tolist()
    assert entropy == pytest.approx(math.log(36), rel=1e-5) and normalised == pytest.approx(1, rel=1e-5)
    assert peak == pytest.approx(1 / 36) and extra == sinks == 0 and 0.1 < distance < 0.5
    own = torch.eye(36).expand(layer.shape).contiguous()
    layer.raw["probs"] = layer.layout.undo(own, layer.raw["probs"].shape)
    distance, entropy, _, peak, _, sinks = _numbers(layer, positions)[0, 0].tolist()
    assert distance == pytest.approx(0, abs=1e-6) and entropy == sinks == 0 and peak == 1
    first = torch.zeros(layer.shape)
    first[..., 0] = 1  # everybody looks at the window's first token
    layer.raw["probs"] = layer.layout.undo(first, layer.raw["probs"].shape)
    assert _numbers(layer, positions)[0, 0, -1] == 1


def test_every_kind_of_network_has_a_table():
    for name in ("davit_tiny", "cait_xxs24_224", "va_stm_halonet_nano", "xcit_nano_12_p16_224"):
        record = recorded(name)
        table = explain.HeadTable()
        table.update(record)
        rows = table.compute()
        assert len(rows) == sum(layer.shape[2] for layer in record)
        for row in rows:
            assert row["peak"] <= 1 + 1e-6 and 0 <= row["entropy_normalised"] <= 1 + 1e-5, row
            assert (row["distance"] is None) == (row["kind"] == "channel" or record[row["layer"]].shape[3] == 1), row
            assert row["distance"] is None or 0 <= row["distance"] <= math.sqrt(2)


def test_streams_over_batches_of_any_size():
    model, x = small("va_stm_swin_nano")
    tables = []
    for batches in ([x], x.split(1)):
        tables.append(explain.HeadTable())
        for batch in batches:
            with torch.no_grad(), explain.capture(model, keep=("probs",)) as record:
                model(batch)
            tables[-1].update(record)
    whole, parts = (table.compute() for table in tables)
    for one, other in zip(whole, parts, strict=True):
        assert one["distance"] == pytest.approx(other["distance"], rel=1e-5)
        assert one["entropy"] == pytest.approx(other["entropy"], rel=1e-4)
    with pytest.raises(ValueError, match="is not among those of the records before"):
        tables[0].update(recorded("vit_tiny_patch16_224"))
    with pytest.raises(ValueError, match="call update"):
        explain.HeadTable().compute()
