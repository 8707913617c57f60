"""Code under test of ``test_streaming.py``, run where ``HF_ENDPOINT`` names the stand-in: ``hub_client.py OUTPUT``."""

import json
import sys
import time
import warnings
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint

from ovsl.data import (
    EvaluationSet,
    HubSource,
    PredictionData,
    SegmentationDataModule,
    ToySource,
    TrainTransform,
)
from ovsl.data.sources import Source
from ovsl.errors import InputError
from tests.data.recorder import Recorder, trainer

STEPS, STOP = 22, 7


class Run(Recorder):
    """Writes what its rank saw when it ends."""

    def __init__(self, output: Path, name: str) -> None:
        super().__init__()
        self.output, self.name = output, name

    def on_fit_end(self) -> None:
        seen = {"trained": self.trained, "validated": self.validated}
        (self.output / f"{self.name}-{self.global_rank}.json").write_text(json.dumps(seen))


def data(train: Source, validation: Source, vocabulary: str) -> SegmentationDataModule:
    return SegmentationDataModule(
        train=train,
        vocabulary=vocabulary,
        evaluation={"first": EvaluationSet(vocabulary, validation=validation)},
        train_transform=TrainTransform(crop_size=16, scale=(0.8, 1.5)),
        batch_size=4,
        num_workers=2,
        seed=5,
    )


def fit_in_two_processes(output: Path, name: str, make_data) -> None:
    """Fit on two ranks without a break, then once more from the checkpoint of step STOP."""
    folder = output / f"{name}-checkpoints"
    for part, checkpoint in (("whole", None), ("resumed", folder / f"step={STOP}.ckpt")):
        saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=STOP, save_top_k=-1)
        trainer(
            STEPS,
            devices=2,
            strategy="ddp_fork",
            callbacks=[saver] if checkpoint is None else [],
            enable_checkpointing=checkpoint is None,
            limit_val_batches=1.0 if checkpoint is None else 0,
            check_val_every_n_epoch=None,
            val_check_interval=11,
        ).fit(Run(output, f"{name}-{part}"), make_data(), ckpt_path=checkpoint)


def message(action) -> dict:
    start = time.monotonic()
    try:
        action()
    except InputError as error:
        return {"message": str(error), "seconds": time.monotonic() - start}
    return {"message": "no error", "seconds": time.monotonic() - start}


def main(output: Path) -> None:
    warnings.filterwarnings("ignore")
    fit_in_two_processes(
        output,
        "hub",
        lambda: data(
            HubSource("acme/camvid", id_column="image_id", interleave=3),
            HubSource("acme/camvid", "validation", id_column="image_id"),
            "camvid_11",
        ),
    )
    fit_in_two_processes(
        output, "map", lambda: data(ToySource(0, length=87, size=32), ToySource(1, length=13, size=32), "toy")
    )
    broken = data(HubSource("acme/broken", id_column="image_id"), HubSource("acme/broken"), "camvid_11")
    errors = {
        "column": message(lambda: len(HubSource("acme/camvid", mask_column="annotation"))),
        "split": message(lambda: len(HubSource("acme/camvid", "val"))),
        "repository": message(lambda: len(HubSource("acme/nothing"))),
        "corrupt": message(lambda: list(broken.train_dataloader())),
        "images": message(PredictionData([str(output)], ["road"]).predict_dataloader),
    }
    (output / "errors.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
