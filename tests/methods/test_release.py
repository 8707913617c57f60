import pytest
import torch

from ovsl.errors import InputError
from ovsl.methods.release import rename_by_rules


def renamed(name: str, rule: tuple[str, str], **counts: int) -> str:
    (ours,) = rename_by_rules("Method", {name: torch.empty(1)}, [rule], **counts)
    return ours


@pytest.mark.parametrize(
    ("name", "target", "ours"),
    [
        ("layers.3", r"layers.\1", "layers.3"),
        ("layers.3", r"layers.{2*\1}", "layers.6"),
        ("layers.3", r"layers.{\1-1}", "layers.2"),
        ("layers.4", r"layers.{\1/2}", "layers.2"),
        ("layers.3", r"layers.{\1+depth}", "layers.12"),
    ],
)
def test_a_name_may_count_with_what_the_pattern_captured(name: str, target: str, ours: str) -> None:
    assert renamed(name, (r"layers\.(\d)", target), depth=9) == ours


def test_the_first_rule_that_matches_the_whole_name_counts() -> None:
    rules = [(r"head", "first"), (r"head\.bias", "second"), (r"head\.(.*)", r"third.\1")]
    tensors = {name: torch.zeros(2) for name in ("head.bias", "head.weight", "head.mask")}
    found = rename_by_rules("Method", tensors, rules, dropped=[r".*\.mask"])
    assert list(found) == ["second", "third.weight"]


def test_half_precision_is_widened_and_nothing_else_is_touched() -> None:
    tensors = {"a": torch.ones(1).half(), "b": torch.ones(1).double(), "c": torch.ones(1).long()}
    found = rename_by_rules("Method", tensors, [("(.)", r"\1")])
    assert [tensor.dtype for tensor in found.values()] == [torch.float32, torch.float64, torch.int64]


def test_unknown_names_are_counted_and_named() -> None:
    with pytest.raises(InputError, match=r"Not a checkpoint of Method: no rule for 2 \(x, y\) of its names"):
        rename_by_rules("Method", {"y": torch.empty(1), "x": torch.empty(1)}, [("z", "z")])
