"""Whether gates with a second input are used: accuracy with the right condition against another picture's.

python -m visionattn.comparison.conditions --seeds 0 1 2 --out docs/results/conditions.md
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from torch.utils.data import default_collate

from visionattn.data.synthetic.asked_digits import AskedDigits
from visionattn.tasks import Classifier
from visionattn.utils.files import replacing

__all__ = ["GATES", "evaluate", "run", "train", "write"]

# By what a digit is asked for -> how its gate is attached to the network: behind the stages, where both papers put it.
# At the end of a block it would scale the residual branch alone, and what the shortcut carries would pass it by.
_BEHIND_STAGES = {"where": "stage_end", "start": "paper", "condition": True}
GATES = {
    "sentence": {"plugin": "sentence", "cond_dim": 32, "rescale": True, **_BEHIND_STAGES},
    "saliency": {"plugin": "acat", "stages": (0, 1, 2), **_BEHIND_STAGES},
}
# Epochs and scenes: a mask says where to look, but which channels hold a colour has to be found out.
_SCHEDULES = {"sentence": (24, 10_000), "saliency": (12, 5_000)}
_PREPROCESSOR = {"type": "ImgDataPreprocessor", "mean": [127.5] * 3, "std": [64.0] * 3}
Batch = tuple[torch.Tensor, dict[str, torch.Tensor]]


def run(asked: str, seed: int, *, epochs: int | None = None, scenes: int | None = None) -> dict[str, float]:
    """Trains a narrow ResNet with a gate and evaluates it twice.

    Args:
        asked: A name in `GATES`.
        seed: Of the weights, the order and the training scenes.
        epochs: How often each training scene is seen; 24 for sentences and 12 for saliency without it.
        scenes: How many there are; 10,000 for sentences and 5,000 for saliency without it.

    Returns:
        Accuracies in % with the condition of each picture (`right`) and with that of another (`shuffled`), the
        `epochs` and `scenes`, and the `seconds` of processor time.
    """
    epochs, scenes = epochs or _SCHEDULES[asked][0], scenes or _SCHEDULES[asked][1]
    start = time.process_time()
    torch.manual_seed(seed)
    backbone = {"model_name": "va_resnet10n", "num_classes": 10}
    task = Classifier(backbone, attach=GATES[asked], channels_last=True, data_preprocessor=_PREPROCESSOR)
    train(task, AskedDigits("train", asked, length=scenes, seed=seed), epochs)
    test = AskedDigits("test", asked)
    found = {name: evaluate(task, test, shuffled) for name, shuffled in (("right", False), ("shuffled", True))}
    return {**found, "epochs": epochs, "scenes": scenes, "seconds": time.process_time() - start}


def train(task: Classifier, data: AskedDigits, epochs: int, batch: int = 32) -> None:
    """Trains a task: AdamW, one cycle of the learning rate."""
    steps = epochs * (len(data) // batch)
    optimizer = torch.optim.AdamW(task.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.2)
    inputs, samples = _all(data)
    task.train()
    for _ in range(epochs):
        for numbers in torch.randperm(len(data))[: len(data) // batch * batch].split(batch):
            part = {name: value[numbers] for name, value in samples.items()}
            loss = sum(task(*_prepared(task, (inputs[numbers], part)), "loss").values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def evaluate(task: Classifier, data: AskedDigits, shuffled: bool = False) -> float:
    """Accuracy in %, with `shuffled` where each picture gets the condition of the next one."""
    task.eval()
    inputs, samples = _all(data)
    if shuffled:
        samples = {**samples, "condition": samples["condition"].roll(1, 0)}
    hits = 0
    for numbers in torch.arange(len(data)).split(100):
        part = {name: value[numbers] for name, value in samples.items()}
        scores = task(*_prepared(task, (inputs[numbers], part)), "tensor")
        hits += int((scores.argmax(1) == part["label"]).sum())
    return 100 * hits / len(data)


def write(results: dict[str, list[dict[str, float]]], out: Path, command: str) -> str:
    """Writes the results of all seeds as a table; returns it."""
    rows = list(_rows(results))
    text = "\n".join([_HEAD.format(command=command), *rows, "", _FOOT])
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _rows(results: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    yield "| gate | asked by | epochs x scenes | right condition | another picture's | CPU seconds a run | |"
    yield "|---|---|---|---|---|---|---|"
    for asked, runs in results.items():
        right, shuffled, seconds = ([one[key] for one in runs] for key in ("right", "shuffled", "seconds"))
        verdict = "the gate is used" if min(right) > max(shuffled) else "no difference beyond the seeds"
        verdict = verdict if len(runs) > 2 else "too few seeds to tell"
        cells = [
            f"`{GATES[asked]['plugin']}`",
            asked,
            f"{runs[0]['epochs']} x {runs[0]['scenes']:,}",
            _spread(right),
            _spread(shuffled),
            f"{mean(seconds):.0f}",
            verdict,
        ]
        yield f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float]) -> str:
    around = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{around} ({', '.join(f'{value:.1f}' for value in values)})"


def _all(data: AskedDigits) -> Batch:
    batch = default_collate([data[index] for index in range(len(data))])
    return batch["inputs"], batch["data_samples"]


def _prepared(task: Classifier, batch: Batch) -> Batch:
    prepared = task.data_preprocessor({"inputs": batch[0], "data_samples": batch[1]})
    return prepared["inputs"], prepared["data_samples"]


_HEAD = """# Gates with a second input: are they used?

Three digits on a dark piece of a photograph; the class of one of them is asked for, by a sentence that names its colour
or by the mask of its pixels. Accuracy in % on 600 test scenes, whose digits and photographs are in no training scene,
with the condition of each picture and with that of another one; mean and standard deviation, and each seed in turn.
Who reads all three and picks one at random is right in 40 %: once in three, and where another is of the same class.

    {command}
"""
_FOOT = """The network is `va_resnet10n` from scratch: with sentence attention behind every stage, or with ACAT's mask
behind the first three. The sentence's embedding is the mean of a fixed random vector of each word, in place
of a language model; the four sentences are the same in both splits. All digits of a scene with a mask have one colour.
"""


def main() -> None:
    """Runs all seeds and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--asked", nargs="+", choices=[*GATES], default=[*GATES])
    parser.add_argument("--epochs", type=int, help="24 for sentences, 12 for saliency without it")
    parser.add_argument("--scenes", type=int, help="10,000 for sentences, 5,000 for saliency without it")
    parser.add_argument("--out", type=Path, default=Path("conditions.md"), help="the table")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {asked: [] for asked in options.asked}
    for asked in options.asked:
        for seed in options.seeds:
            found = run(asked, seed, epochs=options.epochs, scenes=options.scenes)
            print(asked, seed, {key: round(value, 1) for key, value in found.items()}, flush=True)
            results[asked].append(found)
    seeds = " ".join(map(str, options.seeds))
    given = "".join(f" --{key} {value}" for key in ("epochs", "scenes") if (value := getattr(options, key)))
    command = f"python -m visionattn.comparison.conditions --seeds {seeds}{given} --out {options.out}"
    print(write(results, options.out, command))


if __name__ == "__main__":
    main()
