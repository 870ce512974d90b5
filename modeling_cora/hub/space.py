"""A folder with app.py as a Space: a metric of `evaluate`, or the demo with the model's code beside it."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import RepoCard

import publishing
from publishing.hub import HubError

PACKAGES = (Path(__file__).resolve().parents[1], Path(publishing.__file__).resolve().parent)
"""modeling_cora, and the house that it knows; they are on no package index."""
MODEL_VARIABLE = "CORA_SPACE_MODEL"
"""Environment variable of the demo (`spaces/`): the repository of the model that it shows."""


def is_space(folder: Path) -> bool:
    return (folder / "app.py").is_file()


def space_files(folder: Path, repo_id: str, model: str | None = None) -> tuple[dict[str, Path | bytes], str]:
    """The files by their path in the repository, and the SDK that the front matter names.

    `modeling_cora/` and `publishing/` go with an app that imports the first.

    Args:
        model: its repository, for the front matter's `models`.

    Raises:
        HubError: no front matter with `sdk`, or a metric under a name that `evaluate.load` does not look for.
    """
    readme = folder / "README.md"
    try:
        card = RepoCard(readme.read_text(encoding="utf-8")) if readme.is_file() else None
    except ValueError as error:
        raise HubError(f"{readme}: front matter cannot be read ({error})") from None
    sdk = card.data.get("sdk") if card else None
    if card is None or not sdk:
        raise HubError(f"{readme}: has no front matter with `sdk`; `sdk: gradio` would be right for a Space")
    name = repo_id.rpartition("/")[2]
    if "metric" in (card.data.get("tags") or ()) and not (folder / f"{name}.py").is_file():
        modules = sorted(path.stem for path in folder.glob("*.py") if path.name not in ("app.py", "__init__.py"))
        raise HubError(f"{repo_id}: evaluate.load would look for {name}.py; {' or '.join(modules)} is the name's end")
    files: dict[str, Path | bytes] = _tree(folder)
    if any(_imports_the_model(path) for path in folder.rglob("*.py")):
        for package in PACKAGES:
            files |= {f"{package.name}/{name}": path for name, path in _tree(package).items() if name.endswith(".py")}
    if model:
        card.data["models"] = [model]
        files["README.md"] = str(card).encode()
    return files, sdk


def _tree(folder: Path) -> dict[str, Path | bytes]:
    """Every file but hidden ones and caches."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        path.as_posix(): whole
        for path, whole in found.items()
        if not any(part.startswith((".", "__pycache__")) for part in path.parts)
    }


def _imports_the_model(path: Path) -> bool:
    return bool(re.search(r"^\s*(?:from|import) modeling_cora\b", path.read_text(encoding="utf-8"), re.MULTILINE))
