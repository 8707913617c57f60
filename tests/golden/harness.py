"""Golden cases: what the official code computes on small random models, found and compared.

A case is a folder `<method>/<case>/` with `meta.json`, `weights.safetensors` (official names) and
`io.safetensors` (inputs, intermediates, outputs, losses, gradients). `tests/golden/<method>.py` rebuilds the model
from `meta.json` and gives back every recorded tensor under its recorded name:

- `compute(case) -> dict[str, Tensor]`
- `INPUTS`: names (regular expressions) that the case gives and the method only reads
- `NOT_COMPUTED`: names (regular expressions) with the reason why the method has no such tensor
- `TOLERANCES` (optional): names (regular expressions) whose tolerance is another than the usual

A recorded tensor that is in none of the three fails the case, and so does an option that the method does not support.
Of some tensors a case records a part alone (every 4th pixel, the first 8 channels); `recorded_part` reads which one.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

SHIPPED = Path(__file__).parent / "cases"
NO_OPTION = re.compile(r"(^|_)notes?$|^(recorded|stored)_|_(recorded|stored)$")


@dataclass(frozen=True)
class Case:
    """One golden case."""

    method: str
    name: str
    path: Path
    meta: dict[str, Any] = field(repr=False)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Weights under official names, half precision brought to float32."""
        return self.load("weights.safetensors")

    @property
    def io(self) -> dict[str, Tensor]:
        """Recorded tensors, as stored."""
        return load_file(self.path / "io.safetensors")

    def load(self, file: str) -> dict[str, Tensor]:
        """Tensors of a weights file, half precision brought to float32."""
        tensors = load_file(self.path / file)
        return {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}

    def meaning(self, name: str) -> str:
        """What the case says about a recorded tensor, and about the record in general."""
        described = self.meta.get("tensors") or self.meta.get("tensors_io") or {}
        if isinstance(described, list):
            described = {entry["name"]: entry for entry in described}
        sections = (self.meta, self.meta.get("config") or {})
        general = [{key: section[key] for key in section if NO_OPTION.search(key)} for section in sections]
        return json.dumps([described.get(name, ""), general], ensure_ascii=False)

    def check_keys(self, known: dict[str, str]) -> None:
        """Warn of anything that the case asks for and that is passed over.

        What matters of it shows in the tensors, which are compared. Notes, and keys that tell how the tensors were
        recorded, ask for nothing.

        Args:
            known: Names of the keys, separated by blanks, of each section: `""` for the top level, `a.b` for one inside
                another. Sections that a case lacks are passed over.
        """
        for path, names in known.items():
            section: Any = self.meta
            for part in path.split(".") if path else ():
                section = (section or {}).get(part)
            unknown = {key for key in section or () if not NO_OPTION.search(key)} - set(names.split())
            if unknown:
                warnings.warn(f"{self}: {path or 'meta.json'} has unknown keys: {sorted(unknown)}", stacklevel=2)

    def __str__(self) -> str:
        return f"{self.method}/{self.name}"


@dataclass(frozen=True)
class Comparison:
    """Difference of one tensor: largest absolute difference over the largest recorded magnitude."""

    name: str
    relative: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance (NaN is not)."""
        return self.relative <= self.tolerance


def find_cases() -> Iterator[Case]:
    """Cases that travel with the project, then those in the folder that `OVSL_GOLDEN` names."""
    roots = [SHIPPED]
    if os.environ.get("OVSL_GOLDEN"):
        roots.append(Path(os.environ["OVSL_GOLDEN"]))
    for root in roots:
        for meta in sorted(root.glob("*/*/meta.json")):
            if adapter_of(meta.parent.parent.name) is not None:
                yield Case(meta.parent.parent.name, meta.parent.name, meta.parent, json.loads(meta.read_text()))


def adapter_of(method: str) -> ModuleType | None:
    """The module that rebuilds a method's cases, or None for a method that is not here yet."""
    if not (Path(__file__).parent / f"{method}.py").is_file():
        return None
    return importlib.import_module(f"tests.golden.{method}")


def compare(case: Case) -> list[Comparison]:
    """Compute a case and compare every recorded tensor.

    Raises:
        AssertionError: A recorded tensor was neither computed nor declared.
    """
    adapter = adapter_of(case.method)
    assert adapter is not None
    recorded, computed = case.io, adapter.compute(case)
    declared = [*adapter.INPUTS, *adapter.NOT_COMPUTED]
    comparisons = []
    for name, expected in recorded.items():
        if name not in computed:
            assert any(re.fullmatch(pattern, name) for pattern in declared), f"{case}: {name!r} was not computed"
            continue
        found = recorded_part(case, name, computed[name].detach(), expected.shape)
        relative, tolerance = _difference(name, found, expected)
        for pattern, own_tolerance in getattr(adapter, "TOLERANCES", {}).items():
            if re.fullmatch(pattern, name):
                tolerance = own_tolerance
        comparisons.append(Comparison(name, relative, tolerance))
    unknown = computed.keys() - recorded.keys()
    assert not unknown, f"{case}: computed but not recorded: {sorted(unknown)}"
    return comparisons


def recorded_part(case: Case, name: str, found: Tensor, shape: torch.Size) -> Tensor:
    """The part of a computed tensor that a case records, by what its `meta.json` says.

    Known ways to say it: `every 4th`, `full[..., ::4, ::4]` or a key `stored_stride`, for pixels, rows and columns or
    for channels; and `channels 0 to 7`. Values are compared afterwards: a reading that fits by chance does not pass.

    Raises:
        AssertionError: The shapes differ and `meta.json` does not say which part was recorded.
    """
    if found.shape == shape:
        return found
    meaning = case.meaning(name)
    parts = [found[:, int(a) : int(b) + 1] for a, b in re.findall(r"channels (\d+) to (\d+)", meaning)]
    for step in {int(number) for number in re.findall(r'(?:every|_stride"|::)\D{0,12}?(\d+)', meaning)} - {0, 1}:
        parts += [found[..., ::step, ::step], found[:, ::step]]
    fitting = [part for part in parts if part.shape == shape]
    assert fitting, (
        f"{case}: {name!r} is {tuple(found.shape)}, recorded {tuple(shape)}, and meta.json names no such part"
    )
    return fitting[0]


def _difference(name: str, found: Tensor, expected: Tensor) -> tuple[float, float]:
    if expected.numel() == 0:  # an image without targets; the shape has been compared
        return 0.0, 0.0
    if not expected.is_floating_point():
        # Label maps, windows and tokens: the share of entries that differ has to be zero.
        return float((found.long() != expected.long()).double().mean()), 0.0
    tolerance = 1e-3 if name.startswith("grad") else 1e-4
    scale = max(float(expected.double().abs().max()), 1e-6)
    return float((found.double() - expected.double()).abs().max()) / scale, tolerance


def main() -> int:
    """Print, case by case, the largest relative difference and the tensor it is in."""
    failed = 0
    for case in find_cases():
        comparisons = compare(case)
        worst = max(comparisons, key=lambda c: c.relative)
        bad = [c for c in comparisons if not c.passed]
        failed += bool(bad)
        print(f"{case!s:40} {len(comparisons):4} tensors  largest {worst.relative:.1e} in {worst.name}")
        for comparison in bad:
            print(f"    FAILED {comparison.name}: {comparison.relative:.1e} > {comparison.tolerance:.0e}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
