"""Results of small demonstrations, kept run by run: a command that was stopped goes on where it was."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from visionattn.utils.files import replacing

__all__ = ["KeptRuns"]


class KeptRuns:
    """What runs found, by name, in a JSON file that is written after each.

    Args:
        path: The file; read if it is there.
        settings: What the results depend on besides the name.

    Raises:
        ValueError: If the file holds runs of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"settings": self.settings}
        if found["settings"] != self.settings:
            raise ValueError(f"{path} holds runs with {found['settings']}, not {self.settings}: move it away")
        self.runs: dict[str, Any] = found.get("runs", {})

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """What a run found, computed if it is not there yet."""
        if name not in self.runs:
            self.runs[name] = compute()
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps({"settings": self.settings, "runs": self.runs}, indent=1) + "\n")
            print(name, self.runs[name], flush=True)
        return self.runs[name]
