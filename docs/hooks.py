"""Pages of the site that are made from files of the repository, so that they cannot go stale: see `mkdocs.yml`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from ovsl.configuration import read_configuration

ROOT = Path(__file__).parents[1]
FIGURES = {"mIoU_seen": "mIoU seen", "mIoU_unseen": "mIoU unseen"}
"""Names of figures that a table writes differently."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation; called by MkDocs."""
    assert config.nav is not None
    pages = [{package: f"reference/{package}.md"} for package in packages()]
    config.nav.insert(-1, {"Reference": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; called by MkDocs."""
    pages = {"zoo.md": zoo(), "first_minutes.md": notebook(ROOT / "docs/first_minutes.ipynb")}
    for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY"):
        pages[f"{name.lower()}.md"] = (ROOT / f"{name}.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for package, modules in packages().items():
        pages[f"reference/{package}.md"] = "\n\n".join([f"# {package}", *(f"::: {module}" for module in modules)])
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def packages() -> dict[str, list[str]]:
    """Every package with its modules."""
    found = {}
    for folder in sorted(path.parent for path in (ROOT / "ovsl").rglob("__init__.py")):
        package = ".".join(folder.relative_to(ROOT).parts)
        names = (path.stem for path in sorted(folder.glob("*.py")))
        modules = [f"{package}.{name}" for name in names if not name.startswith("_")]
        if modules:
            found[package] = modules
    return found


# The model zoo -------------------------------------------------------------------------------------------------------


def zoo() -> str:
    """Make a section of every experiment, below a table of all."""
    reproduced = yaml.safe_load((ROOT / "docs/reproduced.yaml").read_text(encoding="utf-8"))
    experiments = {
        path.relative_to(ROOT / "experiments").with_suffix("").as_posix(): path
        for path in sorted((ROOT / "experiments").rglob("*.yaml"))
    }
    lines = [
        "# Model zoo",
        "",
        "Every recipe in `experiments/`, made from the files themselves. Published figures are the authors', with "
        "their source; **no weights of ours are offered, and nobody here has trained a recipe at full size**. What was "
        "reproduced, and how, stands below each method; [the recipes, item by item](recipes.md) compares them with the "
        "official repositories.",
        "",
        "| experiment | method | CLIP | trained on | length | published |",
        "|---|---|---|---|---|---|",
        *(_row(name, read_configuration(path)) for name, path in experiments.items()),
    ]
    for folder, members in groupby(experiments, key=lambda name: name.partition("/")[0]):
        lines += ["", f"## {folder}", "", f"**Reproduced:** {reproduced[folder]}"]
        for name in members:
            lines += ["", *_section(name, experiments[name])]
    return "\n".join(lines) + "\n"


def _row(name: str, configuration: dict[str, Any]) -> str:
    model, data, trainer = (configuration.get(part) or {} for part in ("model", "data", "trainer"))
    options = model.get("init_args", {})
    clip = options.get("clip", {})
    train = data.get("train", "")
    if isinstance(train, dict):
        train = train["class_path"].rpartition(".")[2]
    steps, devices = trainer.get("max_steps"), trainer.get("devices", 1)
    images = data.get("batch_size", 0) * devices * trainer.get("accumulate_grad_batches", 1)
    figures = [
        f"{dataset} {FIGURES.get(figure, figure)} {value}"
        for dataset, published in _published(configuration).items()
        for figure, value in published.items()
    ]
    cells = [
        f"[{name}](#{_anchor(name)})",
        "study" if "axes" in configuration else model.get("class_path", "").rpartition(".")[2],
        " ".join(str(part) for part in (clip.get("model"), clip.get("pretrained")) if part),
        train,
        f"{steps} x {images}" if steps and images else "",
        ", ".join(figures[:2]) + (", ..." if len(figures) > 2 else ""),
    ]
    return f"| {' | '.join(cells)} |"


def _section(name: str, path: Path) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    configuration = read_configuration(path)
    comment = [line.removeprefix("#").removeprefix(" ") for line in lines[:header]]
    yield from (f"### {name} {{ #{_anchor(name)} }}", "", *_prose(comment))
    if "axes" in configuration and not any("ovsl study" in line for line in comment):
        yield from ("", f"    ovsl study experiments/{name}.yaml")
    published = _published(configuration)
    if published:
        figures = list(dict.fromkeys(figure for each in published.values() for figure in each))
        yield from ("", f"| published | {' | '.join(FIGURES.get(figure, figure) for figure in figures)} |")
        yield "|---|" + "---:|" * len(figures)
        for dataset, each in published.items():
            yield f"| {dataset} | {' | '.join(str(each.get(figure, '')) for figure in figures)} |"
    yield from ("", f'??? note "experiments/{name}.yaml"', "", "    ```yaml")
    yield from (f"    {line}".rstrip() for line in lines[header:])
    yield "    ```"


def _published(configuration: dict[str, Any]) -> dict[str, dict[str, float]]:
    evaluation = (configuration.get("data") or {}).get("evaluation") or {}
    return {name: each["published"] for name, each in evaluation.items() if each and each.get("published")}


def _prose(comment: list[str]) -> Iterator[str]:
    """Write a header as Markdown: what is indented is a command or a table, papers are links."""
    previous = ""
    for line in comment:
        indented = line.startswith("  ")
        if indented != previous.startswith("  "):
            yield ""
        line = f"    {line.strip() if 'ovsl' in line else line}" if indented else _linked(line)
        yield line
        previous = line


def _linked(line: str) -> str:
    line = line.replace("*", r"\*").replace("<", "&lt;")
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", line)


def _anchor(name: str) -> str:
    return name.replace("/", "-")


# The notebook --------------------------------------------------------------------------------------------------------


def notebook(path: Path) -> str:
    """Write a notebook as Markdown: its texts, its programs, and the outputs that it was saved with."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts.extend(_output(output) for output in cell.get("outputs", []))
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        content = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
        return f"![output](data:image/png;base64,{content})"
    return f"```text\n{''.join(output.get('text') or data['text/plain']).rstrip()}\n```"
