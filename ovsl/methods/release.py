"""What the `official.py` of every method shares: each tensor of a released checkpoint is accounted for.

Every `official.py` has the tables `NAMES` and `DROPPED`, and the functions `rename(state_dict)`, `settings(state_dict)`
(what a conversion without a configuration builds) and `convert(state_dict, module)`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ovsl.errors import InputError
from ovsl.methods.base import SegmentationModule

CLIP_TOLERANCE = 1e-3
"""Largest difference, relative to a tensor's largest entry, at which a frozen CLIP weight counts as the same one:
releases store some of them in half precision."""

_UNUSED = ("num_batches_tracked",)  # of BatchNorm, which reads it only where it has no momentum
_OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def rename_by_rules(
    method: str,
    state_dict: Mapping[str, Tensor],
    names: Sequence[tuple[str, str]],
    dropped: Sequence[str] = (),
    **counts: int,
) -> dict[str, Tensor]:
    r"""Give the tensors of a release our names; half precision becomes float32.

    Args:
        method: Name of the method, for the message.
        state_dict: The official state dict.
        names: Pattern of official names and our name for it; the first that matches the whole name counts. Our name may
            hold what the pattern captured (`\1`) and one operation with it in braces: `{2*\1}`, `{\1-1}`, `{\1+depth}`.
        dropped: Patterns of names that are left out.
        **counts: Numbers that the braces name.

    Raises:
        InputError: A name that no rule knows.
    """
    renamed, unknown = {}, []
    for name, tensor in state_dict.items():
        if any(re.fullmatch(pattern, name) for pattern in dropped):
            continue
        ours = next((match.expand(new) for old, new in names if (match := re.fullmatch(old, name))), None)
        if ours is None:
            unknown.append(name)
        else:
            half = tensor.dtype in (torch.float16, torch.bfloat16)
            renamed[_calculate(ours, counts)] = tensor.float() if half else tensor
    if unknown:
        raise InputError(f"Not a checkpoint of {method}: no rule for {_some(unknown)} of its names.")
    return renamed


def _calculate(name: str, counts: Mapping[str, int]) -> str:
    def value(word: str) -> int:
        return int(word) if word.isdecimal() else counts[word]

    def result(match: re.Match[str]) -> str:
        first, operation, second = match.groups()
        return str(_OPERATIONS[operation](value(first), value(second)))

    return re.sub(r"\{(\w+)([-+*/])(\w+)\}", result, name)


def fillable(module: SegmentationModule, unused: Collection[str] = ()) -> dict[str, Tensor]:
    """List what a release fills: the parameters and buffers that a checkpoint holds, the frozen CLIP's among them.

    Args:
        module: The module.
        unused: Names that no release holds.
    """
    return {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if name not in unused}


def load_release(
    module: SegmentationModule,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    check: str,
    text_tower_optional: bool = False,
) -> None:
    """Load the renamed tensors of a release into a freshly built module.

    Frozen CLIP weights have to be those that the module stands on already; where it was built with random ones they are
    loaded like the rest. A 1x1 convolution of the release may be a linear layer here.

    Args:
        module: The module that `expected` belongs to.
        found: Tensors of the release under our names.
        expected: Parameters and buffers, or views of them, that the release should fill; see `fillable`.
        check: Settings that decide on names and shapes, for the message.
        text_tower_optional: Whether the release may lack the whole text tower of CLIP, which then stays as it is.

    Raises:
        InputError: With what is missing, left over, of another shape, or of another CLIP.
    """
    method, pretrained = type(module).__name__, module.clip.pretrained is not None
    expected = {name: tensor for name, tensor in expected.items() if not name.endswith(_UNUSED)}
    found = {
        name: tensor.flatten(1) if tensor.shape[2:] == (1, 1) and expected.get(name, tensor).ndim == 2 else tensor
        for name, tensor in found.items()
        if not name.endswith(_UNUSED)
    }
    missing = expected.keys() - found.keys()
    text = {name for name in expected if name.startswith("clip.") and not name.startswith("clip.model.visual.")}
    if text_tower_optional and not (text - {"clip.model.logit_scale"}) & found.keys():
        missing -= text
    unexpected = found.keys() - expected.keys()
    wrong = [name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape]
    if missing or unexpected or wrong:
        raise InputError(
            f"The file does not fit the configured {method}: {_some(missing)} missing, {_some(unexpected)} left over, "
            f"{_some(wrong)} of another shape; check {check}."
        )
    frozen = {name for name in found if name.startswith("clip.") and not expected[name].requires_grad}
    compared = frozen if pretrained else set()
    with torch.no_grad():
        different = [name for name in compared if not _same(found[name], expected[name])]
        if different:
            raise InputError(
                f"The file was trained on another CLIP than {module.clip.name!r} ({module.clip.pretrained}): of "
                f"{len(compared)} frozen weights {_some(different)} differ; set model.clip to the CLIP of the release."
            )
        for name in found.keys() - compared:
            expected[name].copy_(found[name])


def _same(found: Tensor, own: Tensor) -> bool:
    return bool((found - own).abs().max() <= CLIP_TOLERANCE * found.abs().max())


def _some(names: Collection[str]) -> str:
    """How many there are, and the first three."""
    if not names:
        return "0"
    return f"{len(names)} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
