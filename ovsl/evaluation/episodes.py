"""The few-shot protocol: each image is asked for one class that it holds, against everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ovsl.data.batches import EvaluationBatch, EvaluationTask
from ovsl.errors import InputError
from ovsl.evaluation.dataset import DatasetEvaluation, RunHeader
from ovsl.evaluation.image_counts import ImageCounting
from ovsl.evaluation.segmenter import Segmenter
from ovsl.inference import Segmentation
from ovsl.metrics.episodes import COUNTS, EpisodeIoU, drawn, image_key
from ovsl.results import ClassResult, EvaluationResult
from ovsl.results.bootstrap import Interval, intervals
from ovsl.results.image_counts import ImageCounts
from ovsl.scores import episode_scores
from ovsl.vocabulary import Vocabulary

OTHERS = "others"


class EpisodeEvaluation(DatasetEvaluation):
    """Asks every image for each unseen class that it holds, in two words: that class and "others".

    Li et al., *LSeg*, ICLR 2022, arXiv 2201.03546, section 4.1, after the protocol of few-shot segmentation; any method
    that takes words can be asked so. The truth is brought to the size of the image that the network sees.

    Args:
        task: The dataset; its vocabulary has the split whose unseen classes are asked.
        segmenter: Binds words to the method.
        device: Where counts are kept.
        count_images: Whether the counts of each image are kept too.

    Raises:
        InputError: The vocabulary has no unseen class.
    """

    def __init__(
        self,
        task: EvaluationTask,
        segmenter: Callable[[Vocabulary], Segmenter],
        device: torch.device | str = "cpu",
        count_images: bool = False,
    ) -> None:
        super().__init__(task, segmenter(task.vocabulary), "skip", device)
        vocabulary = task.vocabulary
        asked = [] if vocabulary.seen is None else vocabulary.unseen_indices
        if not asked:
            raise InputError(
                f"Dataset '{task.name}' is asked in episodes, but no class of its is unseen: set its split to a fold."
            )
        self.asked = asked
        self.bind = segmenter
        self.questions: dict[int, Segmenter] = {}
        self.episodes = EpisodeIoU(len(vocabulary)).to(device)
        self.image_counting = ImageCounting(COUNTS) if count_images else None
        self.panoptic_quality = self.average_precision = None

    def update(self, batch: EvaluationBatch) -> list[Segmentation]:
        """Ask each image; see `DatasetEvaluation.update`.

        Returns:
            For each image the classes that were found, others as the first class of the vocabulary.
        """
        return [self._ask(batch, index) for index in range(len(batch["image"]))]

    def _ask(self, batch: EvaluationBatch, index: int) -> Segmentation:
        image, semantic = batch["image"][index], batch["semantic"][index]
        size = (image.shape[-2], image.shape[-1])
        truth = _nearest(semantic, size)
        labels = torch.zeros_like(truth)
        counts = torch.zeros(len(COUNTS), len(self.task.vocabulary), dtype=torch.int64, device=truth.device)
        for label in sorted(set(self.asked) & set(semantic.unique().tolist())):
            if label not in self.questions:
                self.questions[label] = self.bind(question(self.task.vocabulary, label))
            (found,) = self.questions[label]([image], [size])
            answer = found.labels == 1
            ignored = truth == self.task.vocabulary.ignore_index
            self.episodes.update(batch["id"][index], label, answer, truth == label, ignored)
            counts[:, label] = self.episodes.entries[-1][0, -len(COUNTS) :]
            labels[answer] = label
        if self.image_counting is not None:
            self.image_counting.add(batch["id"][index], counts)
        whole = _nearest(labels, (semantic.shape[0], semantic.shape[1]))
        self.iou.update(whole, semantic)
        return Segmentation(whole)

    def result(self, header: RunHeader) -> EvaluationResult:
        """Divide the counts of all processes; every process has to call this."""
        values = self.episodes.compute()
        images = int(self.iou.compute()["images"])
        counts = None if self.image_counting is None else self.image_counting.gather()
        metrics = {name: None if values[name].isnan() else values[name].item() for name in self.episodes.scalars}
        vocabulary = self.task.vocabulary
        per_class = tuple(
            ClassResult(vocabulary.classes[label], False, None if value.isnan() else value.item(), None, 0)
            for label, value in ((label, values["iou"][label]) for label in self.asked)
        )
        return EvaluationResult(
            run=header.run,
            method=header.method,
            stage=header.stage,
            dataset=self.task.name,
            images=images,
            step=header.step,
            absent_classes="skip",
            metrics=metrics,
            per_class=per_class,
            published={name: value / 100 for name, value in self.task.published.items()},
            intervals={} if counts is None else self._episode_intervals(counts),
            image_counts=counts,
        )

    def _episode_intervals(self, counts: ImageCounts) -> dict[str, Interval]:
        """Intervals of all questions, and of those that were drawn by drawing their images again."""

        def score(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            scores = episode_scores(sums)
            return {name: scores[name] for name in scores if name in self.episodes.scalars}

        found = intervals(counts, score)
        keys = np.array([image_key(id) for id in counts.images.tolist()])
        chosen = drawn(keys[counts.image], counts.label, self.episodes.num_episodes, self.episodes.seed)
        times = np.bincount(chosen, minlength=len(counts.label))
        repeated = replace(counts, columns={name: times * values for name, values in counts.columns.items()})
        found |= {f"{name}_episodes": ends for name, ends in intervals(repeated, score).items()}
        return {name: found[name] for name in self.episodes.scalars if name in found}


def question(vocabulary: Vocabulary, label: int) -> Vocabulary:
    """Make the words of a question: "others" and one class, under the name of the vocabulary for its class names."""
    own = vocabulary.subset([label])
    return replace(
        own,
        classes=(OTHERS, *own.classes),
        synonyms=((OTHERS,), *own.synonyms),
        seen=None,
        things=None,
        palette=((0, 0, 0), *own.palette),
    )


def _nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a label map, each pixel as the one at its upper left, as officially."""
    return functional.interpolate(labels[None, None].double(), size, mode="nearest")[0, 0].to(labels.dtype)
