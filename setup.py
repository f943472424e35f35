from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = (ROOT / "visionattn" / "version.py").read_text().split('"')[1]
# What travels with the package besides its code; read through visionattn/_resources.py.
SHARED = {f"visionattn._share.{name}": name for name in ("configs", "tools", "checkpoints")}

setup(
    name="visionattn",
    version=VERSION,
    description="Visual attention for CNNs and vision transformers: modules, a zoo registered with timm, training",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["visionattn", "visionattn.*"]), *SHARED],
    package_dir=SHARED,
    package_data={"visionattn": ["py.typed"], **{name: ["**/*"] for name in SHARED}},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "timm>=1.0.31",
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "huggingface_hub>=0.34",
        "filelock>=3.12",
        "mmengine-lite>=0.10.7",
        "pyyaml",
        "albumentations>=2.0.8,<3",
        "opencv-python-headless>=4.9",
        "torchmetrics>=1.9",
        "faster-coco-eval>=1.8",
        "segmentation-models-pytorch>=0.5",
        "scikit-learn>=1.4",
        "scikit-image>=0.22",
        "matplotlib>=3.8",
        "tensorboard>=2.16",
        "rich>=13.7",
    ],
    extras_require={
        "explain": ["grad-cam>=1.5.5"],
        "test": [
            "pytest>=8",
            "pytest-rerunfailures>=15",
            "pytest-xdist>=3.6",
            "jsonschema>=4.18",
            "pycocotools>=2.0.8",
            "ruff==0.17.6",
            "mypy==2.4.1",
            "setuptools>=71",
            "onnx>=1.17",
            "onnxscript>=0.5",
            "onnxruntime>=1.20",
        ]
    },
    entry_points={"console_scripts": ["visionattn = visionattn.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
