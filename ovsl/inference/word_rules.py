"""From scores of words to label maps: what the training-free line of SCLIP does after the network.

A class may have several words, of which the best speaks for it, and the background may be whatever is left. The rules
are those of SCLIP (Wang et al., ECCV 2024, arXiv 2312.01597) and of all that build on its code; any method that gives
one score for each word can use them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ovsl.errors import InputError
from ovsl.inference.pamr import PAMR
from ovsl.inference.prediction import DensePrediction, Prediction, WordClasses, resize
from ovsl.inference.regions import most_frequent_labels
from ovsl.inference.semantic import Inference, Predict, Size, SlidingWindow, WholeImage, average_windows
from ovsl.vocabulary import Vocabulary

BACKGROUND = "background"

WordChunk = Callable[[slice], Tensor]
"""Scores `(B, N', H, W)` of some words at the size of the labels."""


@dataclass(frozen=True)
class WordRules:
    """How scores of words become labels.

    The probability of a word is `softmax(logit_scale * score)` over all words of the vocabulary; that of a class is
    the largest of its words.

    Args:
        logit_scale: Factor of the scores before the softmax: a constant of the recipe, not the checkpoint's.
        probability_threshold: Pixels whose best class is less probable than this become class 0, the background.
        area_threshold: Classes other than class 0 whose share of the pixels of all those classes is not larger than
            this are left out; None leaves none out.
    """

    logit_scale: float = 40.0
    probability_threshold: float = 0.0
    area_threshold: float | None = None

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse a vocabulary that has no background for the pixels below a threshold.

        Raises:
            InputError: A threshold is set and class 0 is not the background.
        """
        first = (vocabulary.classes[0], *vocabulary.synonyms[0])
        thresholds = self.probability_threshold > 0 or self.area_threshold is not None
        if thresholds and BACKGROUND not in (word.casefold() for word in first):
            raise InputError(
                f"The probability and area thresholds send pixels to class 0, but class 0 of '{vocabulary.name}' is "
                f"'{vocabulary.classes[0]}': give a vocabulary whose class 0 is '{BACKGROUND}', or leave the "
                "thresholds out."
            )

    def labels(self, scores_of: WordChunk, word_classes: WordClasses, chunk_size: int = 32) -> Tensor:
        """Make label maps; the words are gone through in chunks and never held together.

        Args:
            scores_of: Scores of some words; asked for all words once, or twice where areas count.
            word_classes: Class of each word.
            chunk_size: Words held at a time.

        Returns:
            int64 `(B, H, W)`.
        """
        labels, probability = self._best_class(scores_of, word_classes, chunk_size)
        if self.area_threshold is not None:
            small = self.small_classes(labels, word_classes.num_classes)
            labels, probability = self._best_class(scores_of, word_classes, chunk_size, small)
        return labels.masked_fill(probability < self.probability_threshold, 0)

    def probabilities(self, scores: Tensor, word_classes: WordClasses) -> Tensor:
        """Return class probabilities before any threshold; of all classes at once, for export and analyses.

        Args:
            scores: Of all words, `(B, N, H, W)`.
            word_classes: As for `labels`.

        Returns:
            `(B, C, H, W)`; they add up to one only where every class has one word.
        """
        probabilities = (self.logit_scale * scores).softmax(1)
        index = word_classes.index.view(1, -1, 1, 1).expand_as(scores)
        zeros = scores.new_zeros(len(scores), word_classes.num_classes, *scores.shape[2:])
        return zeros.scatter_reduce(1, index, probabilities, "amax")

    def thresholded(self, probabilities: Tensor) -> Tensor:
        """Apply the thresholds: classes left out have 0, and class 0 has 1 where no class is probable enough.

        Args:
            probabilities: Of `probabilities`.
        """
        if self.area_threshold is not None:
            small = self.small_classes(probabilities.argmax(1), probabilities.shape[1])
            probabilities = probabilities.masked_fill(small[..., None, None], 0)
        first = torch.arange(probabilities.shape[1], device=probabilities.device) == 0
        low = probabilities.amax(1, keepdim=True) < self.probability_threshold
        return probabilities.masked_fill(low & first[:, None, None], 1)

    def small_classes(self, labels: Tensor, num_classes: int) -> Tensor:
        """Find the classes below the area threshold, bool `(B, C)`; never class 0.

        Args:
            labels: int64 `(B, H, W)`.
            num_classes: C.
        """
        assert self.area_threshold is not None
        image = torch.arange(len(labels), device=labels.device).view(-1, 1, 1) * num_classes
        pixels = (labels + image).flatten().bincount(minlength=len(labels) * num_classes).view(-1, num_classes)
        foreground = pixels[:, 1:]
        small = foreground <= self.area_threshold * foreground.sum(1, keepdim=True)
        return torch.cat([torch.zeros_like(small[:, :1]), small], dim=1)

    def _best_class(
        self, scores_of: WordChunk, word_classes: WordClasses, chunk_size: int, left_out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the best class of every pixel and its probability, both `(B, H, W)`.

        The best class is that of the best word; only the sum of the softmax has to be carried along with it.
        """

        def best_word(chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
            logits = self.logit_scale * scores_of(chunk)
            total = logits.logsumexp(1)
            if left_out is not None:
                logits = logits.masked_fill(left_out[:, word_classes.index[chunk], None, None], float("-inf"))
            values, index = logits.max(1)
            return values, index + chunk.start, total

        first, *others = (slice(start, start + chunk_size) for start in range(0, len(word_classes), chunk_size))
        best, words, total = best_word(first)
        for chunk in others:
            values, index, total_here = best_word(chunk)
            # Strictly greater keeps the first of equal words, and with it the first of equal classes.
            words = torch.where(values > best, index, words)
            best, total = torch.maximum(best, values), torch.logaddexp(total, total_here)
        return word_classes.index[words], (best - total).exp()


class WordInference(Inference):
    """Label maps by the rules for words, refined or not.

    Args:
        inference: How images go through the network; windows are joined as scores, before any softmax.
        rules: From scores of words to labels.
        refinement: Refines the scores at the original size, guided by the image; None for none.
        at_input_size: Whether the scores are brought to the size of the input on their way to the original size. SCLIP
            does not where the whole image is one window. A sliding window always does.
        correct_regions: Give all pixels of a region its most frequent label in the end (CorrCLIP).
        word_chunk_size: Words whose scores are held at full resolution at a time.
    """

    def __init__(
        self,
        inference: WholeImage | SlidingWindow = SlidingWindow(crop_size=224, stride=112),
        rules: WordRules = WordRules(),
        refinement: PAMR | None = None,
        at_input_size: bool = True,
        correct_regions: bool = False,
        word_chunk_size: int = 32,
    ) -> None:
        self.inference = inference
        self.rules = rules
        self.refinement = refinement
        self.at_input_size = at_input_size
        self.correct_regions = correct_regions
        self.word_chunk_size = word_chunk_size

    def check(self, vocabulary: Vocabulary) -> None:
        """See `WordRules.check`."""
        self.rules.check(vocabulary)

    def labels(
        self,
        predict: Predict,
        images: Tensor,
        original_size: Size,
        regions: Tensor | None = None,
    ) -> Tensor:
        """See `Inference.labels`; the prediction has to be dense."""
        scores_of, word_classes = self.word_scores(predict, images, original_size, regions)
        labels = self.rules.labels(scores_of, word_classes, self.word_chunk_size)
        if self.correct_regions and regions is not None:
            return most_frequent_labels(labels, regions)
        return labels

    def scores(self, predict: Predict, images: Tensor, original_size: Size | None = None) -> Tensor:
        """See `Inference.scores`; class probabilities after `WordRules.thresholded`."""
        size = original_size or (images.shape[-2], images.shape[-1])
        scores_of, word_classes = self.word_scores(predict, images, size)
        return self.rules.thresholded(self.rules.probabilities(scores_of(slice(None)), word_classes))

    def word_scores(
        self, predict: Predict, images: Tensor, original_size: Size, regions: Tensor | None = None
    ) -> tuple[WordChunk, WordClasses]:
        """Give scores of words at the original size, made when they are asked for, and the class of each word.

        Args:
            predict: See `Inference.labels`.
            images: `(B, 3, H, W)`.
            original_size: `(H0, W0)`.
            regions: See `Inference.labels`.

        Returns:
            What gives `(B, N', H0, W0)` for a slice of the N words.
        """
        windows, predictions = self.inference.predictions(predict, images, regions)
        by_word, word_classes = _rows_as_classes(predictions)
        size = (images.shape[-2], images.shape[-1])
        direct = isinstance(self.inference, WholeImage) and not self.at_input_size
        weights = None
        if self.refinement is not None and not direct:
            guide = images.float() / 255 if images.dtype == torch.uint8 else images
            weights = self.refinement.weights(resize(guide, original_size))

        def scores_of(words: slice) -> Tensor:
            if direct:
                return by_word[0].semantic_scores(original_size, words)
            scores = resize(average_windows(by_word, windows, size, words), original_size)
            return scores if self.refinement is None or weights is None else self.refinement.refine(scores, weights)

        return scores_of, word_classes


def _rows_as_classes(predictions: list[Prediction]) -> tuple[list[Prediction], WordClasses]:
    """Give the predictions with every word as a class of its own, and the class of each word."""
    first = predictions[0]
    if not isinstance(first, DensePrediction):
        raise InputError("The rules for words need scores on a grid, but the method predicts masks: use WholeImage.")
    word_classes = first.word_classes
    if word_classes is None:
        each = torch.arange(first.num_classes, device=first.scores.device)
        return predictions, WordClasses(each, first.num_classes)
    return [replace(p, word_classes=None) for p in predictions if isinstance(p, DensePrediction)], word_classes
