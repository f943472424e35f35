"""Reading mmengine's Python text configs, with errors that name file and line.

mmengine's own reader neither accepts a byte order mark nor knows where our packaged configs are, and its errors name
temporary files. Inheritance (`_base_`, `_delete_`), `_base_.name` and the templates `{{ fileDirname }}`,
`{{ $VARIABLE:default }}` and `{{ _base_.name }}` mean what they mean there. Configs of mmengine's other style, with
`read_base()` or imports of packages, are left to mmengine.
"""

import ast
import os
import re
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings

from visionattn.utils.config_files import SCOPE, find_config, read_text

__all__ = ["import_modules", "read_config"]

_TEMPLATE = re.compile(r"""\{\{\s*['"]?\s*(\$?)([\w.]+)\s*(?::\s*([^\s'"}]*))?\s*['"]?\s*\}\}""")


def read_config(path: Path, register: bool = True) -> Config:
    """Reads a config and what it inherits from.

    Args:
        path: The file.
        register: Whether to import its `custom_imports`.

    Raises:
        FileNotFoundError: If it inherits from a file or name that does not exist.
        ValueError: If one of the files cannot be read, or a module cannot be imported; the message names file and line.
    """
    if path.suffix != ".py":
        raise ValueError(f"{path}: a config is a Python file (.py), which is code; {path.suffix} files are not read")
    if _is_lazy(_parse(path, _text(path))):
        return Config.fromfile(path, import_custom_modules=register)
    texts: list[str] = []
    values = _read(path, (), texts)
    config = Config(ConfigDict(values), cfg_text="\n".join(texts), filename=str(path))
    if register:
        import_modules(config)
    return config


def import_modules(config: Config) -> None:
    """Imports a config's `custom_imports`.

    Raises:
        ValueError: If a module cannot be imported.
    """
    if not (imports := config.get("custom_imports")):
        return
    try:
        import_modules_from_strings(**imports)
    except (ImportError, TypeError) as error:
        raise ValueError(
            f"{config.filename}: custom_imports={dict(imports)} failed: {error}; the environment variable PYTHONPATH "
            "names the folders of modules that are not installed"
        ) from error


def _read(path: Path, below: tuple[Path, ...], texts: list[str]) -> dict[str, Any]:
    """The variables of a file, merged into those of its bases."""
    if path.resolve() in below:
        raise ValueError(f"{path} inherits from itself, by {' -> '.join(parent.name for parent in below)}")
    text = _text(path)
    tree = _parse(path, text)
    inherited = ConfigDict()
    for name in _bases(path, tree):
        base = find_config(name).path if name.startswith(SCOPE) else path.parent / name
        if not base.is_file():
            raise FileNotFoundError(f"{path} inherits from {name!r}, but there is no file {base}")
        values = _read(base, (*below, path.resolve()), texts)
        if twice := inherited.keys() & values.keys():
            raise ValueError(f"{path}: more than one of its bases sets {', '.join(sorted(twice))}")
        inherited.update(ConfigDict(values))
    tree.body = [node for node in tree.body if not _assigns_base(node)]
    space: dict[str, Any] = {"_base_": inherited}
    try:
        exec(compile(tree, str(path), "exec"), space)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise ValueError(f"{path}, line {lines[-1]}: {type(error).__name__}: {error}") from error
    texts.append(f"{path}\n{text}")
    _merge({name: value for name, value in space.items() if _is_setting(name, value)}, inherited, path)
    return inherited


def _merge(own: dict[str, Any], inherited: dict[str, Any], path: Path, parents: str = "") -> None:
    for key, value in own.items():
        base = inherited.get(key)
        if not isinstance(value, dict) or base is None or value.get("_delete_"):
            inherited[key] = _without_marks(value)
        elif isinstance(base, dict):
            _merge(value, base, path, f"{parents}{key}.")
        else:
            raise ValueError(
                f"{path}: {parents}{key} is a dict, but what it inherits is a {type(base).__name__}; "
                "_delete_=True in it replaces that"
            )


def _without_marks(value: Any) -> Any:
    if isinstance(value, dict):
        return ConfigDict({key: _without_marks(part) for key, part in value.items() if key != "_delete_"})
    return type(value)(map(_without_marks, value)) if type(value) in (list, tuple) else value


def _text(path: Path) -> str:
    try:
        return _substitute(read_text(path), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not encoded in UTF-8: {error}") from error


def _parse(path: Path, text: str) -> ast.Module:
    try:
        return ast.parse(text, str(path))
    except (SyntaxError, ValueError) as error:  # a ValueError for null bytes
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(f"{path}{line}: no valid Python: {getattr(error, 'msg', error)}") from error


def _bases(path: Path, tree: ast.Module) -> list[str]:
    for node in tree.body:
        if _assigns_base(node):
            try:
                assert isinstance(node, ast.Assign)
                bases = ast.literal_eval(node.value)
                return [bases] if isinstance(bases, str) else [name + "" for name in bases]
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {node.lineno}: _base_ must be a list of file names") from error
    return []


def _assigns_base(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_base_"


def _is_setting(name: str, value: Any) -> bool:
    return (
        not name.startswith("__") and name != "_base_" and not isinstance(value, types.FunctionType | types.ModuleType)
    )


def _is_lazy(tree: ast.Module) -> bool:
    """Whether a config is in mmengine's lazy style, which imports classes and other configs."""
    modules: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.With):
            return True
        if _assigns_base(node):
            return False
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or ".")
    return any(module.partition(".")[0] not in sys.stdlib_module_names for module in modules)


def _substitute(text: str, path: Path) -> str:
    known = {
        "fileDirname": path.resolve().parent.as_posix(),
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }

    def value(match: re.Match[str]) -> str:
        dollar, name, default = match.groups()
        if dollar:
            if (found := os.environ.get(name, default)) is None:
                raise ValueError(f"{path}: the environment variable {name} is not set, and there is no default")
            return found
        return known.get(name, name if name.startswith("_base_.") else match[0])

    return _TEMPLATE.sub(value, text)
