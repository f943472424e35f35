"""Many kills at random moments, some of them while a file is being written: the run ends in the same bits."""

import random

import pytest
from engine.test_resume import alone, assert_same, run  # noqa: F401  (a fixture)

from visionattn.engine import latest_checkpoint, verify_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_kills(seed, alone, tiny_config, tmp_path, record_property):  # noqa: F811
    moments, kills = random.Random(seed), 0
    for _ in range(8):  # of 24 iterations, 6 an epoch
        if moments.random() < 0.5:
            at = (moments.randint(1, 22), moments.uniform(0, 0.2))
            lived = run(tiny_config, tmp_path, kill_at=at)
        else:
            lived = run(tiny_config, tmp_path, die_at=moments.randint(1, 4))
        kills += not lived
        for path in tmp_path.glob("[!.]*.pth"):
            verify_checkpoint(path)
        if lived:
            break
        latest_checkpoint(tmp_path)
    assert run(tiny_config, tmp_path)
    assert_same(alone, tmp_path)
    record_property("faults", kills)
