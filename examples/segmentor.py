# %% [markdown]
# # A segmentor
#
# DeepLabV3+ over a narrow ResNet with CBAM, trained on scenes of handwritten digits; its weights travel with the
# package.

# %%
import numpy as np
import torch
from PIL import Image

from visionattn.data.synthetic.digits import digit_scene
from visionattn.explain import draw
from visionattn.inference import Predictor
from visionattn.tasks import Segmentor

scenes = [digit_scene("test", size=128, digits=(2, 5), seed=[number]) for number in range(8)]
drawn, right = [], []
for result, (scene, objects) in zip(
    Predictor("va_resnet10n_cbam.digit_scenes_deeplabv3plus")([scene for scene, _ in scenes]), scenes, strict=True
):
    print(result.summary())
    drawn += [scene, result.draw(scene)]
    truth = np.zeros(scene.shape[:2], int)  # 0 is the background
    for mask, label in zip(objects.masks, objects.labels, strict=True):
        truth[mask] = label + 1
    right.append(float((result.mask == truth).mean()))
print(f"{np.mean(right):.1%} of the pixels are of the right class")

# %%
labels = [text for number in range(4) for text in (f"scene {number}", "its classes")]
enlarged = [np.asarray(Image.fromarray(part).resize((192, 192))) for part in drawn[:8]]
picture = Image.fromarray(draw.grid(enlarged, labels, columns=4))
picture.save("masks.png")
picture

# %% [markdown]
# Training one is one command, `visionattn train quickstart-segmentation`. The segmentor itself is a module: any network
# of timm or ours as backbone, a mixer in the place of its attention if you like, a decoder on top.

# %%
segmentor = Segmentor(
    backbone=dict(model_name="va_stm_swin_nano", img_size=64),
    replace_attention=dict(mixer="linear", weights="new"),
    decoder=dict(type="FPN"),
    losses=[dict(type="CrossEntropyLoss"), dict(type="DiceLoss")],
    num_classes=11,
)
sample = {"size": (64, 64), "mask": torch.randint(0, 11, (64, 64))}
losses = segmentor(torch.randn(2, 3, 64, 64), [sample, sample], mode="loss")
print({name: round(loss.item(), 3) for name, loss in losses.items()})
