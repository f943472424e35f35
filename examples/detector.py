# %% [markdown]
# # A detector
#
# FCOS with CBAM, trained on scenes of handwritten digits on photographs; its weights travel with the package.

# %%
import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from visionattn.data.synthetic.digits import digit_scene
from visionattn.explain import draw
from visionattn.inference import Predictor
from visionattn.tasks import Detector

scenes = [digit_scene("test", size=128, digits=(2, 5), seed=[number]) for number in range(8)]
drawn, found, there = [], 0, 0
for result, (scene, objects) in zip(
    Predictor("va_resnet10n_cbam.digit_scenes_fcos", score=0.4)([scene for scene, _ in scenes]), scenes, strict=True
):
    print(result.summary())
    drawn.append(result.draw(scene))
    overlap = box_iou(torch.tensor(objects.boxes), torch.tensor(result.boxes))
    same = torch.tensor(objects.labels)[:, None] == torch.tensor(np.array(result.labels))
    found += int(((overlap > 0.5) & same).any(1).sum())
    there += len(objects.boxes)
print(f"{found} of {there} digits found, of the right class, by boxes with an overlap above 0.5")

# %%
picture = Image.fromarray(draw.grid(drawn[:4], [f"scene {number}" for number in range(4)], columns=4))
picture = picture.resize((picture.width // 2, picture.height // 2))
picture.save("detections.png")
picture

# %% [markdown]
# Training one is one command, `visionattn train quickstart-detection`. The detector itself is a module: any network of
# timm or ours as backbone, a plug-in in it if you like, one of torchvision's detectors on top.

# %%
detector = Detector(
    backbone=dict(model_name="resnet18"),  # pretrained=True starts from ImageNet
    attach=dict(plugin="ela_l"),
    detector=dict(type="FCOS"),
    num_classes=10,
)
sample = {"size": (128, 128), "boxes": torch.tensor([[20.0, 30.0, 60.0, 90.0]]), "labels": torch.tensor([3])}
losses = detector(torch.randn(1, 3, 128, 128), [sample], mode="loss")
print({name: round(loss.item(), 3) for name, loss in losses.items()})
