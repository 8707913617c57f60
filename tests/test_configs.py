"""Every shipped YAML: methods run on the toy world, whole experiments parse."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ovsl.cli import main
from ovsl.vocabulary import Vocabulary
from tests.conftest import ROOT

METHODS = sorted((ROOT / "configs/methods").glob("*.yaml"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))
TOY = ["-c", str(ROOT / "configs/data/toy.yaml"), "-c", str(ROOT / "configs/trainer/debug.yaml")]
QUICK = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.mark.parametrize("config", METHODS, ids=lambda path: path.stem)
def test_method_runs_on_the_toy_world(config: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump({"data": {"init_args": {"batch_size": 2, "num_workers": 0}}}))
    command = ["-c", str(config), *TOY, "-c", str(small), *QUICK, "--run_dir", str(tmp_path / "run")]
    trainable = "MaskCLIP" not in config.read_text()
    assert main([*(["fit"] if trainable else ["test"]), *command]) == 0
    assert not (tmp_path / "run").exists(), "a debug run writes nothing"


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT / "experiments")))
def test_experiment_parses_and_its_vocabularies_exist(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(config.read_text())
    verb = "fit" if (content.get("data") or {}).get("init_args", {}).get("train") else "test"
    more = [] if "data" in content else TOY[:2]
    with pytest.raises(SystemExit) as ended:
        main([verb, "-c", str(config), *more, "--print_config"])
    assert ended.value.code == 0, capsys.readouterr().err
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    named = [data, *(data.get("evaluation") or {}).values()]
    for entry in named:
        if entry["vocabulary"] is not None:
            assert len(Vocabulary.load(entry["vocabulary"], split=entry["split"])) > 1
