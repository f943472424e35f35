from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = (ROOT / "visionattn" / "version.py").read_text().split('"')[1]
# What travels with the package besides its code; read through visionattn/_resources.py.
SHARED = {f"visionattn._share.{name}": name for name in ("configs", "tools", "checkpoints")}
# Blocks, mixers, networks, `attach` and loading weights. timm itself needs torchvision, huggingface_hub and PyYAML.
CORE = [
    "torch>=2.6",
    "timm>=1.0.31",
    "numpy>=1.26",
    "safetensors>=0.4.3",
    "filelock>=3.12",
]
# Another engine is one line: onedl-mmengine has the same modules, so only one of the two can be installed
# (`.ci/mmengine-fork` tries it).
MMENGINE = "mmengine-lite>=0.10.7"
# The command line, training, evaluation and prediction.
TRAIN = [
    MMENGINE,
    "torch>=2.11",
    "torchvision>=0.26",
    "huggingface_hub>=0.34",
    "pyyaml",
    "pillow>=10",
    "albumentations>=2.0.8,<3",
    "pydantic>=2.9",
    "opencv-python-headless>=4.9",
    "torchmetrics>=1.9",
    "faster-coco-eval>=1.8",
    "segmentation-models-pytorch>=0.5",
    "scikit-learn>=1.4",
    "scikit-image>=0.22",
    "scipy>=1.11",
    "matplotlib>=3.8",
    "tensorboard>=2.16",
    "rich>=13.7",
]
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
# The documentation site; it shows what the whole package says of itself.
DOCS = [*TRAIN, "mkdocs>=1.6,<2", "mkdocs-material>=9.8", "mkdocstrings>=1.0", "mkdocstrings-python>=2.0"]
EXPLAIN = [*TRAIN, "grad-cam>=1.5.5", "captum>=0.8"]
HUB = ["huggingface_hub>=0.34"]
# Hugging Face's data sets, for `ImageReader`.
LARGE = [*TRAIN, "datasets>=4"]
# Where runs can be logged to besides files.
TRACKERS = ["wandb>=0.19", "mlflow>=3"]
# What `visionattn.explain` can use besides: texts and towers of open_clip, maps by UMAP.
ANALYSIS = ["open_clip_torch>=2.24", "umap-learn>=0.5"]
EXTRAS = {
    "train": TRAIN,
    "explain": EXPLAIN,
    "analysis": [*EXPLAIN, *ANALYSIS],
    "export": [*TRAIN, *EXPORT],
    "hub": HUB,
    "large": LARGE,
    "trackers": [*TRAIN, *TRACKERS],
    "docs": DOCS,
    "all": [*EXPLAIN, *EXPORT],
    "test": [
        *TRAIN,
        *EXPORT,
        "captum>=0.8",
        "datasets>=4",
        "grad-cam>=1.5.5",
        "pytest>=8",
        "pytest-rerunfailures>=15",
        "pytest-xdist>=3.6",
        "jsonschema>=4.18",
        "pycocotools>=2.0.8",
        "ruff==0.17.6",
        "mypy==2.4.1",
        "setuptools>=71",
    ],
}

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
    package_data={"visionattn": ["py.typed", "explain/*.html"], **{name: ["**/*"] for name in SHARED}},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["visionattn = visionattn.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
