"""Code under test of ``test_hub.py``, run where ``HF_ENDPOINT`` names the stand-in: ``hub_client.py RELEASE``."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np

from ovsl.__main__ import main
from ovsl.data import Catalogued, HubSource
from ovsl.errors import InputError


def prepare(release: str, *options: str) -> dict:
    """Run the command and say how it ended."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(["prepare", "camvid", "--from", release, "--workers", "1", *options])
    return {"status": status, "out": out.getvalue(), "error": errors.getvalue().strip().splitlines()[-1:]}


def run(release: str) -> dict:
    """Push without and with a token, stream it back, and read it as a stranger."""
    found = {"no token": prepare(release, "--push_to", "acme/camvid"), "made": Path("data/camvid").exists()}
    os.environ["HF_TOKEN"] = "hf_of_acme"
    found["pushed"] = prepare(release, "--push_to", "acme/camvid", "--files", "4")
    found["again"] = prepare(release, "--to", "two", "--files", "2", "--push_to", "acme/camvid")
    found["of another"] = prepare(release, "--files", "4", "--push_to", "other/camvid")
    found["no name"] = prepare(release, "--push_to", "camvid")
    streamed, local = HubSource("acme/camvid", "train", id_column="image_id"), Catalogued("camvid")
    rows = [(streamed.row(index), local.row(index)) for index in range(len(local))]
    found["rows"] = len(streamed)
    found["same"] = all(
        a.id == b.id and np.array_equal(a.image, b.image) and np.array_equal(a.semantic, b.semantic) for a, b in rows
    )
    del os.environ["HF_TOKEN"]
    try:
        len(HubSource("acme/camvid", "validation"))
    except InputError as error:
        found["stranger"] = str(error)
    return found


if __name__ == "__main__":
    Path("found.json").write_text(json.dumps(run(sys.argv[1])))
