"""The plain patch-text baseline as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ovsl.clip import CLIPSettings, DenseTower, TextEmbeddings, ViTTower
from ovsl.data.batches import TrainingBatch
from ovsl.inference import DensePrediction, Prediction, resize
from ovsl.layers import cosine_scores
from ovsl.losses import pixel_cross_entropy
from ovsl.methods.base import Losses, SegmentationModule


class PatchText(SegmentationModule):
    """Cosine similarity of patch tokens and text embeddings, trained on the seen classes.

    The one-stage baseline of Zhou et al.: *ZegCLIP*, CVPR 2023, https://arxiv.org/abs/2212.03588 (section 3.1): the
    patch tokens of the unmodified image tower are matched with the text embeddings, upsampled, and trained with
    softmax and cross entropy over the seen classes. The paper's fine-tuned variant (Baseline-FT) trains the image
    tower; that is the default here, with the text tower frozen as always. No code of it was released: the learning
    rate and the temperature are ours.

    Args:
        clip: The CLIP that is fine-tuned.
        temperature: Factor of the cosine before the softmax.
        train_clip: Substrings of CLIP parameter names that train.
        **kwargs: See `SegmentationModule`.
    """

    def __init__(
        self,
        clip: CLIPSettings = CLIPSettings(),
        temperature: float = 20.0,
        train_clip: tuple[str, ...] = ("visual.",),
        **kwargs: Any,
    ) -> None:
        super().__init__(clip=clip, train_clip=train_clip, **kwargs)
        self.network = DenseTower(self.clip.require_tower(ViTTower, "PatchText"), mode="attention")
        self.temperature = temperature

    def class_logits(self, images: Tensor, text: TextEmbeddings) -> Tensor:
        """`temperature * cosine` on the patch grid, `(B, C, h, w)`."""
        features = self.network(self.clip.normalize(images))
        return self.temperature * text.per_class(cosine_scores(features, text.vectors))

    def forward(self, images: Tensor, text: TextEmbeddings) -> Prediction:
        """Class probabilities on the patch grid; see `SegmentationModule.forward`."""
        return DensePrediction(self.class_logits(images, text).softmax(dim=1))

    def losses(self, batch: TrainingBatch) -> Losses:
        """Cross entropy over the seen classes at full resolution; pixels of unseen classes are ignored."""
        training = self.training_classes
        targets = training.targets(batch["semantic"])
        logits = resize(self.class_logits(batch["image"], training.text()), (targets.shape[1], targets.shape[2]))
        return Losses({"cross_entropy": pixel_cross_entropy(logits, targets, training.ignore_index)})

    def parameter_groups(self, base_rate: float) -> Iterable[dict[str, Any]]:
        """One group; norms and biases without weight decay."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        yield {"params": [p for p in parameters if p.ndim > 1], "name": "weights"}
        yield {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "name": "norms_and_biases"}
