import csv
import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ovsl.__main__ import main
from ovsl.errors import InputError
from ovsl.results import chart as chart_module
from ovsl.results.chart import draw_per_class_chart
from ovsl.results.result import ClassResult, EvaluationResult
from ovsl.results.tables import average_over_seeds, format_table
from ovsl.tools.report import collect, report

PER_CLASS = (
    ClassResult("sky", True, 0.9, 0.95, 1000),
    ClassResult("road", True, 0.5, 0.6, 500),
    ClassResult("fence", False, 0.25, 0.3, 100),
    ClassResult("train", False, None, None, 0),
)


def _result(run="baseline", **changes):
    metrics = {"pAcc": 0.81234, "mIoU": 0.55, "fwIoU": 0.7, "mIoU_seen": 0.7, "mIoU_unseen": 0.25, "hIoU": None}
    result = EvaluationResult(
        run=run,
        method="PatchText",
        stage="test",
        dataset="streets",
        images=233,
        step=400,
        absent_classes="skip",
        metrics=metrics,
        per_class=PER_CLASS,
    )
    return replace(result, **changes)


def _save(result, folder, name=None):
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    result.write(results / (name or f"{result.stage}-{result.dataset}.json"))


@pytest.fixture
def runs(tmp_path):
    _save(_result(), tmp_path / "runs" / "baseline")
    better = _result("other", method="MaskCLIP", metrics=_result().metrics | {"mIoU": 0.6, "hIoU": 0.3})
    _save(better, tmp_path / "runs" / "nested" / "other")
    _save(_result("other", stage="validate"), tmp_path / "runs" / "nested" / "other")
    (tmp_path / "runs" / "baseline" / "settings.json").write_text("{}")
    return tmp_path / "runs"


def test_finds_results_at_any_depth_and_each_once(runs):
    found = collect([runs, runs / "baseline"])
    assert [(each.run, each.stage) for each in found] == [
        ("other", "test"),
        ("baseline", "test"),
        ("other", "validate"),
    ]
    assert [each.run for each in collect([runs], stage="validate")] == ["other"]


def test_run_without_a_name_gets_that_of_its_directory(tmp_path):
    _save(_result(run=""), tmp_path / "runs" / "san" / "night")
    assert collect([tmp_path / "runs"])[0].run == "san/night"
    assert collect([tmp_path / "runs" / "san" / "night"])[0].run == "night"
    assert collect([tmp_path / "runs" / "san" / "night" / "results"])[0].run == "night"


def test_directories_without_results_name_the_remedy(runs):
    (runs / "empty").mkdir()
    with pytest.raises(InputError, match="empty' holds no results: make them with `ovsl test` or `ovsl validate`"):
        collect([runs, runs / "empty"])
    with pytest.raises(InputError, match="baseline' holds no validate results: make them with `ovsl validate`"):
        collect([runs / "baseline"], stage="validate")
    with pytest.raises(InputError, match=r"no directory .*missing"):
        collect([runs / "missing"])


def test_unreadable_file_is_named(runs):
    (runs / "baseline" / "results" / "cut.json").write_text('{"format": 1, "run"')
    with pytest.raises(InputError, match=r"cut\.json' is not a result of ovsl"):
        collect([runs])


def test_text_table(runs):
    lines = format_table(collect([runs], stage="test")).splitlines()
    assert " ".join(lines[0].split()) == "run method dataset images pAcc mIoU mIoU seen mIoU unseen hIoU"
    assert " ".join(lines[2].split()) == "other MaskCLIP streets 233 81.2 60.0 70.0 25.0 30.0"
    assert " ".join(lines[3].split()) == "baseline PatchText streets 233 81.2 55.0 70.0 25.0 -"
    assert "leave out classes without ground truth (skip)" in lines[-1]


def test_stage_and_convention_get_columns_where_they_differ(runs):
    assert "stage" in format_table(collect([runs])).splitlines()[0]
    mixed = format_table([_result(), _result(absent_classes="zero")])
    assert "absent classes" in mixed.splitlines()[0]
    assert "(skip)" in mixed
    assert "(zero)" in mixed


def test_markdown_and_latex_mark_the_best_of_each_dataset(runs):
    results = [*collect([runs], stage="test"), _result(dataset="a_lone|set")]
    markdown = format_table(results, "markdown").splitlines()
    assert markdown[1].count("---:") == 6
    assert "**60.0**" in markdown[2]
    assert "55.0" in markdown[3]
    assert "**55.0**" not in markdown[3]
    assert markdown[2].count("**81.2**") == markdown[3].count("**81.2**") == 1  # a tie
    assert "**30.0**" not in markdown[2]  # nothing to compare it with
    assert "**" not in markdown[4]
    assert r"a_lone\|set" in markdown[4]
    latex = format_table(results, "latex")
    assert r"\begin{tabular}{lllrrrrrr}" in latex
    assert r"\textbf{60.0}" in latex
    assert r"a\_lone|set" in latex
    assert all(line.count(" & ") == 8 for line in latex.splitlines() if line.endswith(r"\\"))


def test_csv_reads_back():
    text = format_table([_result(run='a, "quoted" run')], "csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["run"] == 'a, "quoted" run'
    assert (row["mIoU unseen"], row["hIoU"], row["absent classes"]) == ("25.0", "-", "skip")


def test_unknown_style_is_refused():
    with pytest.raises(InputError, match="'html': choose one of text, markdown, csv, latex"):
        format_table([_result()], "html")


def test_command_writes_table_and_chart(runs, tmp_path, capsys):
    report([runs], stage="test")
    assert "PatchText" in capsys.readouterr().out
    report([runs], format="markdown", output=tmp_path / "out" / "table.md", chart=tmp_path / "out" / "chart.png")
    assert (tmp_path / "out" / "table.md").read_text() == format_table(collect([runs]), "markdown")
    assert "chart.png" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "chart.png").width > 400


def test_command_line_takes_any_number_of_directories(runs, capsys):
    assert main(["report", str(runs / "baseline"), str(runs / "nested"), "--stage", "test", "--format=csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["run"] for row in rows] == ["other", "baseline"]


def _has_color(image, color):
    wanted = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    return (image == wanted).all(axis=-1).sum() > 500


def test_chart_tells_seen_from_unseen(tmp_path):
    seen, unseen, unknown = (chart_module.COLORS[name] for name in ("seen", "unseen", "all classes"))
    draw_per_class_chart([_result()], tmp_path / "split.png")
    split = np.asarray(Image.open(tmp_path / "split.png").convert("RGB"))
    assert _has_color(split, seen)
    assert _has_color(split, unseen)
    plain = _result(per_class=tuple(replace(entry, seen=None) for entry in PER_CLASS))
    draw_per_class_chart([plain], tmp_path / "plain.png")
    plain = np.asarray(Image.open(tmp_path / "plain.png").convert("RGB"))
    assert _has_color(plain, unknown)
    assert not _has_color(plain, seen)


def test_long_vocabularies_are_drawn_whole_in_columns_of_readable_length(tmp_path):
    entries = tuple(ClassResult(f"class {index}", index % 3 > 0, index / 1000, 0.5, 9) for index in range(171))
    rows = chart_module.panel_grid([_result(per_class=entries), _result("short")])
    panels = [classes for row in rows for _, classes, _ in row]
    assert max(map(len, panels)) <= 45
    drawn = [entry.name for classes in panels[:-1] for entry in classes]
    assert drawn == [f"class {index}" for index in reversed(range(171))]
    # The classes without IoU come last.
    assert [entry.name for entry in panels[-1]] == ["sky", "road", "fence", "train"]
    draw_per_class_chart([_result(per_class=entries)], tmp_path / "long.png")
    assert Image.open(tmp_path / "long.png").height > 1000


def test_needs_no_torch():
    code = "import sys, ovsl.tools.report; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seeds_are_averaged_and_their_spread_shown():
    runs = [
        _result(run=f"full-seed{seed}", metrics={"pAcc": 0.5, "mIoU": miou, "mIoU_seen": 0.5, "mIoU_unseen": unseen})
        for seed, (miou, unseen) in enumerate([(0.40, 0.1), (0.50, None), (0.60, 0.3)])
    ]
    other = _result(run="baseline-seed0")
    averaged = average_over_seeds([*runs, other])
    assert [each.run for each in averaged] == ["full (3 seeds)", "baseline-seed0"]
    assert averaged[0].metrics["mIoU"] == pytest.approx(0.5)
    assert averaged[0].spread["mIoU"] == pytest.approx(0.1)
    assert averaged[0].metrics["mIoU_unseen"] is None
    row = format_table(averaged, "text").splitlines()[2]
    assert "50.0 ± 10.0" in row
    assert "50.0 ± 0.0" in row


def test_panoptic_columns_appear_only_where_there_are_figures():
    assert "PQ" not in format_table([_result()])
    with_quality = _result(metrics={"pAcc": 0.5, "mIoU": 0.4, "PQ": 0.25})
    assert "25.0" in format_table([with_quality, _result()])


def test_published_figures_stand_beside_ours_and_are_never_the_best():
    rows = [_result(published={"mIoU": 0.6}), _result("other")]
    header, _, first, second = format_table(rows, "markdown").splitlines()[:4]
    assert [cell.strip() for cell in header.split("|")][-2] == "mIoU published"
    assert [cell.strip() for cell in first.split("|")][-2] == "60.0"
    assert [cell.strip() for cell in second.split("|")][-2] == "-"
