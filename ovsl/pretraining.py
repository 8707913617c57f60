"""Training of the two toy CLIPs from captions of the toy world, without any mask.

`python -m ovsl.pretraining fit -c configs/clip/toy_vit.yaml` trains weights like the shipped ones. Four losses,
all of which see nothing but images and their captions (the classes that a caption names are read off its words):

1. Image-caption contrast within the batch (Radford et al., ICML 2021, arXiv 2103.00020).
2. Image-phrase contrast: the image embedding against every thing phrase of the world in random templates.
3. Patch-phrase partial labels: every patch belongs to some phrase of its caption,
   `-log sum_{c in caption} p(c | patch)` (learning from candidate labels, Jin and Ghahramani, NIPS 2002).
4. Multiple instances: every phrase of the caption owns some patches, `-log mean_{top k} p(c | patch)`.

Losses 3 and 4 act on the features that MaskCLIP reads (value path of a ViT, projected last map of a convolutional
tower); they bring the locality that a class-token contrast alone does not bring to so small a model. Captions name all
compositions, those included that are unseen when a segmentation method is trained: a CLIP knows many words for which
nobody has drawn masks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import LightningCLI
from open_clip import CLIP, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, SimpleTokenizer
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip.blocks import run_block, run_value_block
from ovsl.clip.image_tower import ConvNeXtTower, ViTTower, open_tower
from ovsl.clip.toy import save_toy_clip
from ovsl.data.toy import CLASSES, STUFF, THINGS
from ovsl.data.toy_captions import ToyCaptionData
from ovsl.errors import InputError
from ovsl.layers import ImageNormalization
from ovsl.vocabulary import available_templates, load_templates

CAPTION_WORDS = "a photo picture there is of on with over in front and ,"


class ToyCLIPPretraining(L.LightningModule):
    """Trains a small open_clip `CLIP` on the toy world's captions; see the module's docstring for the losses.

    Args:
        name: Stem of the files written at the end.
        config: open_clip model configuration (`embed_dim`, `vision_cfg`, `text_cfg`). `vocab_size` is the
            tokenizer's full size; training keeps only the rows of tokens that the toy world and the templates use.
        output: Folder that receives `<name>.safetensors` and `<name>.json` after every validation.
        learning_rate: Peak of the linear warm-up and cosine decay, for the matrices of the blocks (Muon).
        other_learning_rate: The same for all other parameters (AdamW).
        weight_decay: For the matrices; all else has none.
        warmup_steps: Steps of the linear warm-up.
        caption_weight: Weight of loss 1.
        phrase_weight: Weight of loss 2.
        partial_weight: Weight of loss 3.
        instance_weight: Weight of loss 4.
        instance_share: Share of an image's patches that loss 4 averages over (at least one patch).
        captions_per_batch: Number of images whose captions enter loss 1; text costs as much as images here.
    """

    token_ids: Tensor

    def __init__(
        self,
        name: str,
        config: dict[str, Any],
        output: Path = Path("runs/toy_clip"),
        learning_rate: float = 2e-3,
        other_learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_steps: int = 30,
        caption_weight: float = 0.5,
        phrase_weight: float = 1.0,
        partial_weight: float = 1.0,
        instance_weight: float = 1.0,
        instance_share: float = 0.03,
        captions_per_batch: int = 16,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        # Two optimisers, see `configure_optimizers`.
        self.automatic_optimization = False
        self.name, self.config, self.output = name, config, output
        self.learning_rate, self.other_learning_rate = learning_rate, other_learning_rate
        self.weight_decay, self.warmup_steps = weight_decay, warmup_steps
        self.weights = (caption_weight, phrase_weight, partial_weight, instance_weight)
        self.instance_share, self.captions_per_batch = instance_share, captions_per_batch
        self.tokenizer = SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
        self.templates = tuple(dict.fromkeys(t for name in available_templates() for t in load_templates(name)))
        texts = [template.format(name) for template in self.templates for name in CLASSES]
        # Sorted, so that the end-of-text token keeps the largest id, by which open_clip finds it.
        self.register_buffer("token_ids", self.tokenizer([*texts, CAPTION_WORDS]).unique())
        self.clip: Any = CLIP(**{**config, "text_cfg": {**config["text_cfg"], "vocab_size": len(self.token_ids)}})
        for key, parameter in self.clip.named_parameters():
            if key.endswith("gamma"):
                # timm starts the layer scale at 1e-6, fit for deep networks and long runs; this one is neither.
                nn.init.ones_(parameter)
        self.normalize = ImageNormalization(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        tower = open_tower(self.clip.visual)
        if not isinstance(tower, ViTTower | ConvNeXtTower):
            raise InputError("A toy CLIP has a vision transformer or a ConvNeXt; give such a `vision_cfg`.")
        self.tower = tower

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed texts made of known words, unit `(N, D)`."""
        tokens = self.tokenizer(texts)
        # Attention is causal and padding comes last: cutting it off changes nothing but the cost.
        length = int((tokens != 0).sum(1).max())
        ids = torch.searchsorted(self.token_ids, tokens[:, :length].contiguous().to(self.device))
        x = self.clip.token_embedding(ids) + self.clip.positional_embedding[:length]
        x = self.clip.ln_final(self.clip.transformer(x, attn_mask=self.clip.attn_mask[:length, :length]))
        return functional.normalize(x[torch.arange(len(ids)), ids.argmax(-1)] @ self.clip.text_projection, dim=-1)

    def encode_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Embed uint8 images: unit embeddings `(B, D)` and unit dense features `(B, D, h, w)`."""
        pixels, tower = self.normalize(image), self.tower
        pooled, dense = _vit_features(tower, pixels) if isinstance(tower, ViTTower) else _conv_features(tower, pixels)
        return functional.normalize(pooled.float(), dim=-1), functional.normalize(dense.float(), dim=1)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the four losses, not weighted, in the order of the module's docstring."""
        present = batch["present"]
        templates = [self.templates[int(i)] for i in torch.randint(len(self.templates), (len(CLASSES),))]
        captions = batch["caption"][: self.captions_per_batch]
        phrases = [template.format(name) for template, name in zip(templates, CLASSES, strict=True)]
        text = self.encode_text([*captions, *phrases]).float()
        caption_vectors, phrase_vectors = text.split([len(captions), len(phrases)])
        pooled, dense = self.encode_image(batch["image"])
        scale = self.clip.logit_scale.exp()
        with torch.autocast(self.device.type, enabled=False):
            # Captions that name the same things are each other's positives.
            named = present[: len(captions)]
            same = (named[:, None] == named[None]).all(-1).float()
            same = same / same.sum(-1, keepdim=True)
            contrast = scale * pooled[: len(captions)] @ caption_vectors.T
            things = present[:, : len(THINGS)].float()
            things = things / things.sum(-1, keepdim=True)
            log_p = (scale * torch.einsum("bdhw,cd->bhwc", dense, phrase_vectors)).flatten(1, 2).log_softmax(-1)
            best = log_p.topk(max(1, round(self.instance_share * log_p.shape[1])), dim=1).values
            return {
                "caption": (functional.cross_entropy(contrast, same) + functional.cross_entropy(contrast.T, same)) / 2,
                "phrase": functional.cross_entropy(scale * pooled @ phrase_vectors[: len(THINGS)].T, things),
                "partial": -log_p.masked_fill(~present[:, None], -torch.inf).logsumexp(-1).mean(),
                "instance": -(best.logsumexp(1) - np.log(best.shape[1]))[present].mean(),
            }

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One step on the weighted sum of the losses."""
        losses = self.losses(batch)
        loss = torch.stack([weight * value for weight, value in zip(self.weights, losses.values(), strict=True)]).sum()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.clip.parameters(), 1.0)
        optimizers: Any = self.optimizers()
        schedulers: Any = self.lr_schedulers()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        with torch.no_grad():
            # CLIP's range of the temperature.
            self.clip.logit_scale.clamp_(0, np.log(100))
        self.log_dict({f"train/{key}": value.detach() for key, value in losses.items()}, prog_bar=True)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Zero-shot accuracy on single objects, and the mIoU of the dense features on scenes."""
        text = self.encode_text([f"a photo of a {name}." for name in CLASSES]).float()
        pooled = torch.cat([self.encode_image(views)[0] for views in batch["view"].split(60)])
        predicted = (pooled @ text[: len(THINGS)].T).argmax(-1)
        size = batch["semantic"].shape[-2:]
        confusion = torch.zeros(len(CLASSES) ** 2, dtype=torch.long, device=self.device)
        for image, semantic in zip(batch["image"].split(20), batch["semantic"].split(20), strict=True):
            scores = (100 * torch.einsum("bdhw,cd->bchw", self.encode_image(image)[1], text)).softmax(1)
            labels = functional.interpolate(scores, size=size, mode="bilinear").argmax(1)
            confusion += torch.bincount((semantic * len(CLASSES) + labels).flatten(), minlength=len(confusion))
        matrix = confusion.view(len(CLASSES), -1)
        iou = matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag())
        figures = {
            "val/accuracy": (predicted == batch["label"]).float().mean(),
            "val/mIoU": iou.nanmean(),
            "val/mIoU_things": iou[: -len(STUFF)].nanmean(),
        }
        self.log_dict(figures, prog_bar=True, batch_size=1)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LambdaLR]]:
        """Muon for the matrices of the blocks, AdamW for the rest; warm-up and cosine decay over the whole run.

        Muon (Jordan et al., 2024) is in torch 2.9 and later; short trials needed about half of AdamW's steps.
        """
        matrices = [p for n, p in self.clip.named_parameters() if p.ndim == 2 and ("resblocks" in n or "stages" in n)]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in self.clip.parameters() if id(parameter) not in chosen]
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=self.learning_rate, weight_decay=self.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=self.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        total = self.trainer.limit_train_batches

        def factor(step: int) -> float:
            return float(min((step + 1) / self.warmup_steps, 0.5 + 0.5 * np.cos(np.pi * min(step / total, 1))))

        return optimizers, [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]

    def on_validation_end(self) -> None:
        """Write the two files of the model as it is now; the last validation is at the end of the run."""
        save_toy_clip(
            self.name,
            Path(self.output),
            self.clip.state_dict(),
            self.token_ids,
            self.config,
            OPENAI_DATASET_MEAN,
            OPENAI_DATASET_STD,
        )


def _vit_features(tower: ViTTower, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Class-token embedding `(B, D)` and MaskCLIP's value-path features `(B, D, h, w)`."""
    stored = tower.visual.positional_embedding
    size = (pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size)
    # A view smaller than the trained grid is a crop of a scene: it takes a random window of the positions.
    top, left = (int(torch.randint(full - side + 1, ())) for full, side in zip(tower.grid, size, strict=True))
    window = stored[1:].unflatten(0, tower.grid)[top : top + size[0], left : left + size[1]].flatten(0, 1)
    tokens, grid = tower.stem(pixels, positions=torch.cat([stored[:1], window]))
    *first, last = tower.blocks
    for block in first:
        tokens = run_block(block, tokens)
    normed = last.ln_1(tokens)
    # Only the class token attends in the last block: the patches take the value path.
    pooled = tokens[:, :1] + last.attn(normed[:, :1], normed, normed, need_weights=False)[0]
    pooled = tower.project(pooled + last.mlp(last.ln_2(pooled)))[:, 0]
    return pooled, tower.project_patches(run_value_block(last, tokens), grid)


def _conv_features(tower: ConvNeXtTower, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled embedding `(B, D)` and projected last feature map `(B, D, h, w)`."""
    features = tower.stage_features(pixels.contiguous(memory_format=torch.channels_last))["res5"]
    return tower.pool(features), tower.project_map(features)


def main(args: list[str] | None = None) -> None:
    """Run the command `python -m ovsl.pretraining`."""
    LightningCLI(ToyCLIPPretraining, ToyCaptionData, save_config_kwargs={"overwrite": True}, args=args)


if __name__ == "__main__":
    main()
