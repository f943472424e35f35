# %% [markdown]
# # Export
#
# A trained network as `torch.export`'s pt2 and as ONNX. Each file is run and compared with the network before it is
# kept; classes, mean and size travel in it.

# %%
import numpy as np
import torch
from sklearn.datasets import load_digits

from visionattn.inference.exporting import export_network

for kind in ("pt2", "onnx"):
    exported = export_network("va_resnet10n_cbam.digits", format=kind, dynamic=True, out=f"digits.{kind}")
    print(exported.path, exported.facts["dynamic"], *exported.parity)
size, mean, std = (exported.facts[key] for key in ("size", "mean", "std"))

# %% [markdown]
# The files need nothing of this package.

# %%
digits = load_digits()
grey = torch.tensor(digits.images[:64, None] / 16, dtype=torch.float32)
x = torch.nn.functional.interpolate(grey, size, mode="bilinear").repeat(1, 3, 1, 1)
x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
answers = torch.export.load("digits.pt2").module()(x)
answers = answers[0] if isinstance(answers, tuple) else answers

# %%
import onnxruntime

session = onnxruntime.InferenceSession("digits.onnx")
(other,) = session.run(None, {"input": x.numpy()})
right = np.mean(other.argmax(1) == digits.target[:64])
print(f"{right:.1%} of 64 digits are right; largest difference {np.abs(other - answers.detach().numpy()).max():.1e}")
