"""Streaming from a stand-in Hub with faults, on two processes with two workers each."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.data.hub_client import STEPS, STOP
from tests.data.shards import TRAIN, VALIDATION, record, write_shard, write_shards
from tests.hub import Hub, serve

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def streamed(tmp_path_factory) -> tuple[Path, Hub]:
    """One client run that did everything; its outputs and the hub it talked to."""
    folder = tmp_path_factory.mktemp("hub")
    output = folder / "output"
    output.mkdir()
    write_shards(folder / "repos" / "acme" / "camvid")
    rows = [record("train", number) for number in range(12)]
    rows[7]["image"]["bytes"] = rows[7]["image"]["bytes"][:200]
    write_shard(folder / "repos" / "acme" / "broken" / "train-00000-of-00001.parquet", rows)
    with serve(folder / "repos") as hub:
        hub.faults = {"camvid/train-00001": "busy", "camvid/train-00002": "drop", "camvid/validation-00001": "drop"}
        hub.faults["camvid/train-00003"] = "slow"
        client = subprocess.run(
            [sys.executable, "-m", "tests.data.hub_client", str(output)],
            cwd=ROOT,
            env={**os.environ, **hub.environment(folder / "home"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert client.returncode == 0, client.stderr[-3000:]
    return output, hub


def seen(output: Path, run: str) -> list[dict]:
    return [json.loads((output / f"{run}-{rank}.json").read_text()) for rank in range(2)]


def test_connection_faults_are_survived(streamed):
    _, hub = streamed
    assert hub.happened == Counter(busy=1, drop=2, slow=1)


@pytest.mark.parametrize("source", ["hub", "map"])
def test_every_training_row_once_per_pass(streamed, source):
    ranks = [rank["trained"] for rank in seen(streamed[0], f"{source}-whole")]
    # Position order over both ranks: rank 0's batch comes before rank 1's at every step.
    ids = [id for step in zip(*ranks, strict=True) for _, batch, _ in step for id in batch]
    assert len(ids) == STEPS * 8 > 2 * sum(TRAIN)
    first, second = ids[: sum(TRAIN)], ids[sum(TRAIN) : 2 * sum(TRAIN)]
    assert len(set(first)) == sum(TRAIN)
    assert set(first) == set(second)
    assert first != second


@pytest.mark.parametrize("source", ["hub", "map"])
def test_every_validation_row_once(streamed, source):
    counts = Counter(id for rank in seen(streamed[0], f"{source}-whole") for id in rank["validated"])
    assert len(counts) == sum(VALIDATION)
    assert set(counts.values()) == {2}, "two rounds of validation, each over every row"


@pytest.mark.parametrize("source", ["hub", "map"])
def test_resume_is_exact(streamed, source):
    whole, resumed = seen(streamed[0], f"{source}-whole"), seen(streamed[0], f"{source}-resumed")
    for rank in range(2):
        assert resumed[rank]["trained"] == whole[rank]["trained"][STOP:]


def test_errors_name_the_thing_and_the_remedy(streamed):
    errors = json.loads((streamed[0] / "errors.json").read_text())
    parts = {
        "column": ["'annotation'", "image_id, image, mask", "acme/camvid"],
        "split": ["'val'", "train, validation"],
        "repository": ["acme/nothing", "HF_ENDPOINT"],
        "corrupt": ["row 7", "train-007", "acme/broken", "on_error"],
        "images": ["No image", "data.images"],
    }
    for name, expected in parts.items():
        assert all(part in errors[name]["message"] for part in expected), errors[name]
        assert "\n" not in errors[name]["message"]


CLIENT = """
import sys
from ovsl.data import HubSource
from ovsl.errors import InputError
source = HubSource("acme/camvid", id_column="image_id")
print(len(source), flush=True)
sys.stdin.readline()
try:
    source.row(0)
except InputError as error:
    print(error, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["limited", "moved"])
def test_trouble_that_lasts_is_given_up_with_a_word(trouble, tmp_path):
    shards = tmp_path / "repos" / "acme" / "camvid"
    write_shards(shards)
    with serve(tmp_path / "repos") as hub:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            cwd=ROOT,
            env={**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert client.stdout.readline().strip() == str(sum(TRAIN))
        if trouble == "limited":
            hub.faults = {"camvid/train": "limited"}
        else:
            for shard in shards.rglob("*.parquet"):
                shard.rename(shard.with_suffix(".moved"))
        client.stdin.write("go on\n")
        client.stdin.flush()
        said, complained = client.communicate(timeout=300)
    assert said.startswith("Cannot read Hub dataset 'acme/camvid' (train)")
    if trouble == "limited":
        assert "429" in complained.splitlines()[0], "a word while it waits"
        assert "(429), so go on later" in said
    else:
        assert "404" in said or "not found" in said.lower()
