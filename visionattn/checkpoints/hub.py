"""A published checkpoint as a Hugging Face hub repository: model card, timm's config.json, model.safetensors."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from visionattn.models.published import published_cfg
from visionattn.utils.files import replacing
from visionattn.utils.locate import locate
from visionattn.utils.published import Facts, is_network
from visionattn.version import __version__

from .files import published_content, read_weights

__all__ = ["push_to_hub", "write_hub_folder"]

# Task -> what the hub calls it.
_PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}


def push_to_hub(checkpoint: str | Path, repository: str, *, private: bool = False, token: str | None = None) -> str:
    """Uploads a published checkpoint; creates the repository if there is none. An existing model card is kept.

    Args:
        checkpoint: Its name `<model>.<tag>` or file.
        repository: `ORG/NAME`.
        private: Whether a new repository is private.
        token: Of the hub; without it the one of `hf auth login` or of HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the repository is not of this form, or the checkpoint was not written by `publish`.
        ConnectionError: If the hub can't be reached or refuses.
    """
    from huggingface_hub import HfApi

    _check_repository(repository)
    with tempfile.TemporaryDirectory() as name:
        folder = write_hub_folder(checkpoint, name, repository)
        api = HfApi(token=token, library_name="visionattn", library_version=__version__)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            kept = ["README.md"] if api.file_exists(repository, "README.md") else None
            message = f"Add {checkpoint if isinstance(checkpoint, str) else checkpoint.name}"
            done = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=message, ignore_patterns=kept
            )
        except Exception as error:  # whatever the library's HTTP client raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConnectionError(f"failed to upload to {repository} on the hub: {reason}") from error
    return str(done.commit_url)


def write_hub_folder(checkpoint: str | Path, folder: str | Path, repository: str = "ORG/NAME") -> Path:
    """Writes README.md, config.json and model.safetensors; `timm.create_model('local-dir:FOLDER')` loads it as well.

    Weights of eight or four bits are restored to float32, which timm reads for its own networks.

    Args:
        checkpoint: A published checkpoint's name or file.
        folder: Where they go.
        repository: What the model card calls it.

    Raises:
        ValueError: If the checkpoint was not written by `publish`.
    """
    path, facts = locate(checkpoint)
    if facts is None or "version" not in facts:
        raise ValueError(f"{checkpoint} was not written by `visionattn publish`: there is nothing to say of it")
    folder = Path(folder)
    contents = {
        "model.safetensors": published_content(read_weights(path, allow_nonfinite=True), facts),
        "config.json": f"{json.dumps(_config(facts), indent=2)}\n".encode(),
        "README.md": model_card(facts, repository).encode(),
    }
    for name, content in contents.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder


def _check_repository(repository: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise ValueError(f"the repository must be ORG/NAME, got {repository!r}")


def _config(facts: Facts) -> dict[str, Any]:
    """timm's config of a classifier; for other tasks, which timm can't build, a description."""
    stated = {"library_name": "visionattn", "task": facts["task"], "versions": facts.get("versions", {})}
    if not is_network(facts):
        return {**stated, "model": facts["model"], "label_names": facts["input"]["label_names"]}
    cfg = published_cfg(facts, Path())
    modifications = facts.get("modifications")
    return {
        "architecture": facts["model"],
        "num_classes": cfg["num_classes"],
        "label_names": facts["input"]["label_names"],
        "model_args": {**facts.get("arguments", {}), **({"modifications": modifications} if modifications else {})},
        "pretrained_cfg": {
            key: value for key, value in cfg.items() if key not in ("file", "architecture", "label_names")
        },
        **stated,
    }


def model_card(facts: Facts, repository: str) -> str:
    """The page of a repository, with the metadata that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    task = _PIPELINES[facts["task"]]
    dataset = facts["dataset"]
    results = [
        EvalResult(
            task_type=task,
            dataset_type=re.sub(r"\W+", "-", dataset).lower(),
            dataset_name=dataset,
            metric_type=name,
            metric_value=value,
        )
        for name, value in facts["metrics"].items()
        if "/" not in name
    ]
    data = ModelCardData(
        license=(facts.get("license") or "unknown").lower(),
        library_name="timm" if _is_timms(facts) else "visionattn",
        pipeline_tag=task,
        tags=[task, "timm", "visionattn"],
        model_name=facts["name"],
        eval_results=results or None,
    )
    shown = facts["input"]
    channels, height, width = shown["input_size"]
    lines = {
        "Network": f"`{facts['model']}`, {facts['params']:,} parameters, {facts['macs']:,} multiply-adds a picture",
        "Task": f"{facts['task']}, trained on {dataset}",
        "Classes": f"{shown['num_classes']}: {', '.join(shown['label_names'])}",
        "Input": f"{channels}x{height}x{width}, mean {shown['mean']}, std {shown['std']} of pixels in 0..1",
        "Attention": ", ".join(_attention(m) for m in facts.get("modifications", ())),
        "Config": facts.get("config"),
        "Licence": facts.get("license"),
        "Origin": facts.get("origin"),
        "Versions": ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items()),
    }
    details = "\n".join(f"- **{key}:** {value}" for key, value in lines.items() if value)
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in facts["metrics"].items())
    return (
        f"---\n{data.to_yaml()}\n---\n# {repository.rpartition('/')[2]}\n\n{details}\n\n"
        f"## Use\n\n{_usage(facts, repository)}\n\n## Metrics\n\n| metric | value |\n|---|---|\n{metrics}\n"
    )


def _is_timms(facts: Facts) -> bool:
    """Whether timm can build it without this package."""
    return facts["task"] == "classification" and not facts["model"].startswith("va_") and not facts.get("modifications")


def _attention(modification: dict[str, Any]) -> str:
    arguments = modification["arguments"]
    return f"`{modification['kind']}` {', '.join(f'{key}={value!r}' for key, value in arguments.items())}"


def _usage(facts: Facts, repository: str) -> str:
    if not is_network(facts):
        return f"```sh\npip install visionattn\nvisionattn predict PICTURES --model hf-hub:{repository}\n```"
    if not facts["model"].startswith("va_") and facts.get("modifications"):
        return (
            f'```python\nimport visionattn\n\nmodel = visionattn.checkpoints.build("hf-hub:{repository}").eval()\n```'
        )
    imports = "import timm\n" if _is_timms(facts) else "import timm\nimport visionattn  # pip install visionattn\n"
    call = f'model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()'
    return f'```python\n{imports}\n{call}\nmodel.pretrained_cfg["label_names"]\n```'
