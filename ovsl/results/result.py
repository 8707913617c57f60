"""The result of one evaluation as it is kept on disk, in the `results` folder of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from ovsl import __version__
from ovsl.errors import InputError
from ovsl.results.bootstrap import Interval
from ovsl.results.confusion import Confusion, confusion_file
from ovsl.results.diagnosis_counts import DiagnosisCounts, diagnosis_file
from ovsl.results.image_counts import ImageCounts, counts_file
from ovsl.runs.files import write_text

FORMAT = 1


@dataclass(frozen=True)
class ClassResult:
    """What was measured for one class.

    Args:
        name: Name of the class.
        seen: Whether it was seen in training, `None` if that is not known.
        iou: Intersection over union in 0..1, `None` if the class does not enter the means.
        accuracy: Share of its pixels that were found, `None` if it has none.
        pixels: Its pixels in the ground truth.
    """

    name: str
    seen: bool | None
    iou: float | None
    accuracy: float | None
    pixels: int


@dataclass(frozen=True)
class EvaluationResult:
    """One method, evaluated once on one dataset.

    Args:
        run: Name of the run; if empty, `ovsl report` takes that of its directory.
        method: Name of the method, e.g. `ZegCLIP`.
        stage: `test` or `validate`.
        dataset: Name of the evaluation dataset.
        images: Number of images that were counted.
        step: Training steps that the weights had seen.
        absent_classes: Convention for classes without ground truth, see `OpenVocabularyIoU`.
        metrics: Fractions in 0..1 by name (`pAcc`, `mIoU`, `mIoU_seen`, ...), `None` where undefined.
        per_class: One entry for each class, in label order.
        published: Published figures of the same row, fractions in 0..1 by the same names; quoted, not measured.
        intervals: Lowest and highest of the 95 % interval over images of each of `metrics` that has one, see
            `ovsl.results.bootstrap`.
        ovsl_version: Version that measured.
        created: When, in ISO 8601.
        image_counts: What each image adds to the counts; in a file of its own beside this one.
        confusion: Which class was taken for which, likewise.
        diagnosis: What a diagnosis counted, likewise.
    """

    run: str
    method: str
    stage: str
    dataset: str
    images: int
    step: int
    absent_classes: str
    metrics: dict[str, float | None]
    per_class: tuple[ClassResult, ...]
    published: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    ovsl_version: str = __version__
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    image_counts: ImageCounts | None = field(default=None, repr=False, compare=False)
    confusion: Confusion | None = field(default=None, repr=False, compare=False)
    diagnosis: DiagnosisCounts | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> str:
        """Text of a result file; undefined figures are `null`, since JSON has no NaN."""
        values = asdict(replace(self, image_counts=None, confusion=None, diagnosis=None))
        del values["image_counts"], values["confusion"], values["diagnosis"]
        return json.dumps({"format": FORMAT, **values}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Write a result file, whole or not at all, after what belongs beside it."""
        for counts, file in (
            (self.image_counts, counts_file(path)),
            (self.confusion, confusion_file(path)),
            (self.diagnosis, diagnosis_file(path)),
        ):
            if counts is None:
                file.unlink(missing_ok=True)
            else:
                counts.write(file)
        write_text(path, self.to_json())

    @classmethod
    def from_json(cls, text: str) -> EvaluationResult:
        """Read what `to_json` wrote.

        Raises:
            InputError: If the text is not a result, or one of another version of the format.
        """
        try:
            values = json.loads(text)
            found = values.pop("format")
            if found == FORMAT:
                per_class = tuple(ClassResult(**entry) for entry in values.pop("per_class"))
                intervals = {name: (low, high) for name, (low, high) in values.pop("intervals", {}).items()}
                return cls(per_class=per_class, intervals=intervals, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"not a result of ovsl ({error}): evaluate the run again.") from error
        raise InputError(f"a result of format {found}, but this ovsl reads format {FORMAT}: evaluate the run again.")
