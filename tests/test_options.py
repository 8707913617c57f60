"""Options are refused from the source alone where it is certain that they do not exist, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

import ovsl.callbacks
from ovsl.errors import InputError
from ovsl.help import VERBS, method_names
from ovsl.options import CALLBACKS, check_options, parameters
from ovsl.parsing import class_options
from ovsl.shipped import PREFIX, shipped_configurations
from ovsl.tools.completion import command_options


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_passes(verb: str) -> None:
    of_models = tuple(
        f"--model.{option}" for name in method_names() for option in class_options(f"ovsl.methods.{name}")
    )
    options = [option for option in command_options(verb) if not option.startswith(of_models)]
    assert len(options) > 80
    for option in options:
        check_options([verb, f"{option}=1"])


@pytest.mark.parametrize("name", method_names())
def test_every_option_of_a_method_is_read_off_its_source(name: str) -> None:
    path = f"ovsl.methods.{name}"
    known = class_options(path)
    for option in known:
        check_options(["fit", "--model", name, f"--model.{option}", "1"])
        check_options(["fit", f"--model.class_path={path}", f"--model.init_args.{option}=1"])
    found = parameters(path)
    assert found is not None
    assert {option.partition(".")[0] for option in known} == {*found}
    with pytest.raises(InputError, match=f"no option '--model.clap' of {name}: did you mean 'clip'"):
        check_options(["fit", "--model", name, "--model.clap", "1"])


def test_every_shipped_configuration_passes() -> None:
    for name in shipped_configurations():
        if not name.endswith("study") and "/study" not in name and not name.startswith("clip/"):
            check_options(["fit", "-c", PREFIX + name])


def test_settings_of_every_run_are_classes() -> None:
    assert {*CALLBACKS.values()} <= {*ovsl.callbacks.__all__}
    assert all(parameters(f"ovsl.callbacks.{name}") for name in CALLBACKS.values())


@pytest.mark.parametrize(
    "given",
    [
        ["--model", "my.package.Mine", "--model.anything", "1"],
        ["--model.anything", "1"],
        ["--model", "ZegCLIP", "--model.templ", "single"],
        ["--trainer.max_step", "3"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "x"],
        ["--trainer.logger.save_dir", "x"],
        ["--data", "my.package.Data", "--data.anything", "1"],
        ["--data.evaluation.toy.split", "null"],
        ["--data.vocabulary", "toy"],
        ["--data.vocabulary", "[a, b]"],
        ["--model", "MaskCLIP", "--", "--anything"],
    ],
)
def test_what_the_source_does_not_tell_is_for_the_parser(given: list[str]) -> None:
    check_options(["fit", *given])


@pytest.mark.parametrize("words", ["road,sky", "ade20k_15", "missing.txt"])
def test_words_that_are_no_vocabulary_are_refused(words: str) -> None:
    with pytest.raises(InputError, match="vocabulary '"):
        check_options(["predict", "--data.vocabulary", words])


def test_a_later_file_may_name_another_method(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: {class_path: ZegCLIP, init_args: {dropout: 0.1}}")
    (tmp_path / "b.yaml").write_text("model: {class_path: ovsl.methods.MaskCLIP, init_args: {temperature: 1}}")
    files = ["-c", str(tmp_path / "a.yaml"), "-c", str(tmp_path / "b.yaml")]
    check_options(["test", *files, "--model.temperature", "3"])
    with pytest.raises(InputError, match="of MaskCLIP"):
        check_options(["test", *files, "--model.dropout", "3"])
