"""What is made of the cards is current, and made anew by one command."""

import re
import shutil

import pytest

from visionattn import catalog
from visionattn.testing import byte_budgets, generated


def test_nothing_is_stale():
    assert not generated.stale(), f"run `{generated.COMMAND}`"


def test_is_made_anew(tmp_path):
    for name in ("README.md", "docs/networks.md", "NOTICE", "tests/byte_budgets.json", "docs/promises.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(generated.ROOT / name, tmp_path / name)
    assert not generated.renew(tmp_path)
    promises = tmp_path / "docs" / "promises.md"
    promises.write_text(re.sub(r"\d+ recorded", "1 recorded", promises.read_text()))
    for name in ("README.md", "docs/networks.md", "NOTICE"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("CBAM", "CBAMM").replace("recorded results", "results"))
    path = tmp_path / "tests" / "byte_budgets.json"
    byte_budgets.write({name: budget for name, budget in byte_budgets.read(path).items() if name != "pool"}, path)
    assert generated.renew(tmp_path) == ["README.md", "networks.md", "NOTICE", "promises.md", "byte budget of pool"]
    assert byte_budgets.read(path) == byte_budgets.read() and not generated.stale(tmp_path)
    (tmp_path / "NOTICE").write_text("no marks")
    with pytest.raises(ValueError, match="must have the lines Official implementations"):
        generated.stale(tmp_path)


def test_tables_have_a_row_for_each_mechanism():
    for kind in ("plugin", "mixer"):
        table = generated.mechanism_table(kind)
        assert all(f"`{card.name}`" in table for card in catalog.cards(kind))
    assert "| `ela_b` `ela_l` `ela_s` `ela_t` | `EfficientLocalAttention`: " in generated.mechanism_table("plugin")
    assert "| `twins` | attention in windows and to a reduced map, in turns |" in generated.mechanism_table("mixer")
    assert "  BAM, CBAM\n      https://github.com/Jongchan/attention-module (MIT)\n" in generated.notice()
    assert "https://github.com/Xuwei86/ELA_Code (no licence file)" in generated.notice()


def test_networks_are_listed_by_host_and_mechanism():
    table = generated.network_table()
    assert "| `va_{mobilenetv2_050,mobilenetv2_075}_coord` | 224 px |" in table
    assert re.search(r"`va_vit_\{.*linear.*\}_nano` \| 28 to 64 px", table) and "simam" in table
