# %% [markdown]
# # My folder, my model
#
# One sub-folder of pictures a class is all that training needs. Here the folder is made of scikit-learn's handwritten
# digits; put your own in its place.

# %%
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
for number, (pixels, digit) in enumerate(zip(digits.images[:600], digits.target[:600], strict=True)):
    folder = Path("photos", ("even", "odd")[digit % 2])
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15).astype(np.uint8)).resize((32, 32)).save(folder / f"{number}.png")

# %% [markdown]
# Classes, picture size and the split follow from the folder. In a shell:
# `visionattn train --data photos/ --model va_resnet10n_cbam`.


# %%
def visionattn(*arguments):
    """Runs a command of ours, as a shell would."""
    subprocess.run([sys.executable, "-m", "visionattn.cli", *arguments], check=True)


name = "va_resnet10n_cbam"
short = ["train_cfg.max_epochs=3", "train_dataloader.batch_size=32", "train_dataloader.num_workers=0"]
short += ["train_dataloader.persistent_workers=False"]
visionattn("train", "--data", "photos", "--model", name, "--cfg-options", *short)

# %% [markdown]
# `publish` makes one file that carries weights, classes and sizes; it loads by its name from then on.

# %%
run = f"work_dirs/photos-{name}"
visionattn("publish", f"{run}.py", f"{run}/best_top1.pth", "--name", f"{name}.my_photos", "--license", "mit")

# %%
import timm

from visionattn.inference import Predictor

model = timm.create_model(f"{name}.my_photos", pretrained=True)
print(f"{model.num_classes} classes: {', '.join(model.pretrained_cfg['label_names'])}")
files = sorted(Path("photos").glob("*/1*.png"))
results = list(Predictor(f"{name}.my_photos")(map(str, files)))
right = sum(result.labels[0] == file.parent.name for result, file in zip(results, files, strict=True))
print(f"{files[0]}: {results[0].summary()}")
print(f"{right / len(files):.1%} of {len(files)} pictures are right, those it has learnt from among them")
