"""Configuration files on top of others: `base: voc_inductive.yaml`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ovsl.__main__ import main
from ovsl.configuration import merged, read_configuration
from ovsl.errors import InputError
from tests.conftest import ROOT


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_file_says_only_what_differs(tmp_path: Path) -> None:
    write(
        tmp_path,
        first="data: {train: a, evaluation: {a: {published: {mIoU: 1.0, pAcc: 2.0}}}}\nlist: [1, 2]",
        second="base: first.yaml\ndata: {split: s, evaluation: {a: {published: {mIoU: 3.0}}, b: {}}}",
        third="base: second.yaml\ndata: {split: null}\nlist: [3]",
    )
    assert read_configuration(tmp_path / "third.yaml") == {
        "data": {
            "train": "a",
            "split": None,
            "evaluation": {"a": {"published": {"mIoU": 3.0, "pAcc": 2.0}}, "b": {}},
        },
        "list": [3],
    }


def test_another_class_brings_its_own_options() -> None:
    below = {"class_path": "Whole", "init_args": {"x": 1, "y": {"z": 2}}}
    assert merged(below, {"init_args": {"y": {"z": 3}}}) == {
        "class_path": "Whole",
        "init_args": {"x": 1, "y": {"z": 3}},
    }
    assert merged(below, {"class_path": "Whole", "init_args": {"x": 5}})["init_args"] == {"x": 5, "y": {"z": 2}}
    assert merged(below, {"class_path": "Window"}) == {"class_path": "Window"}
    assert merged(below, "Window") == "Window"
    assert merged("Whole", below) == below
    assert merged({"train": {"class_path": "Toy"}}, {"train": "ade20k_150"}) == {"train": "ade20k_150"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "base: voc_inductiv.yaml", "voc_inductive": ""}, "does not exist: did you mean voc_inductive.yaml?"),
        ({"a": "base: ovsl:zegclip/voc_inductiv"}, "did you mean zegclip/voc_inductive"),
        ({"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: b.yaml"}, "b.yaml -> c.yaml -> b.yaml"),
        ({"a": "base: a.yaml"}, "cannot be its own base: a.yaml -> a.yaml"),
        ({"a": "base: [b.yaml]"}, "`base` of a.yaml is ['b.yaml']: give the name of one file"),
        ({"a": "base: b.yaml", "b": "x: [1"}, "a.yaml builds on b.yaml, which cannot be read"),
    ],
)
def test_a_base_that_cannot_be(
    files: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(write(tmp_path, **files))
    with pytest.raises(InputError) as raised:
        read_configuration(Path("a.yaml"))
    assert message in " ".join(str(raised.value).split())
    assert main(["fit", "-c", "a.yaml"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_verbs_print_and_record_it_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "base: ovsl:methods/maskclip\nmodel: {init_args: {templates: identity}}\nrun_dir: " + str(tmp_path / "run")
    file = write(tmp_path, mine=name) / "mine.yaml"
    small = ["-c", str(ROOT / "configs/data/toy.yaml"), "--data.evaluation.toy.test.class_path", "ovsl.data.ToySource"]
    small += [
        "--data.evaluation.toy.test.init_args.length",
        "2",
        "--data.num_workers",
        "0",
        "--trainer.accelerator",
        "cpu",
    ]
    with pytest.raises(SystemExit):
        main(["test", "-c", str(file), *small, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert main(["test", "-c", str(file), *small, "--trainer.enable_progress_bar", "false"]) == 0
    recorded = yaml.safe_load((tmp_path / "run/config.test.yaml").read_text())
    for whole in (printed, recorded):
        assert "base" not in whole
        assert whole["model"]["class_path"] == "ovsl.methods.MaskCLIP"
        assert whole["model"]["init_args"]["clip"]["model"] == "toy_vit"
        assert whole["model"]["init_args"]["templates"] == "identity"


def test_a_base_names_the_model_of_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, mine="base: ovsl:methods/zegclip\nmodel: {init_args: {num_prompts: 3}}")
    assert main(["fit", "-c", str(tmp_path / "mine.yaml")]) == 2
    assert "model.num_prompts is called model.sizes.num_prompts now" in capsys.readouterr().err


def test_datasets_stay_in_the_order_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["test", "-c", "ovsl:training_free/corrclip", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["evaluation"]
    written = read_configuration(ROOT / "experiments/training_free/corrclip.yaml")["data"]["evaluation"]
    assert list(printed) == list(written)
    assert next(iter(written)) == "pascal_voc_21"
