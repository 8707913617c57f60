"""CLIP models of open_clip, opened for dense prediction and frozen.

Parameter names stay those of open_clip (`visual.*`, `transformer.*` ...), so that every released CLIP checkpoint
and every method built on one speaks the same names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import open_clip
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from ovsl.clip.image_tower import ImageTower, open_tower
from ovsl.clip.networks import build_network
from ovsl.clip.split_attention import PROJECTIONS, split_attention
from ovsl.clip.toy import TOY_CLIPS, load_toy_clip
from ovsl.errors import InputError
from ovsl.layers.image_normalization import ImageNormalization
from ovsl.progress import progress

ImageTowerUse = Literal["frozen", "trained", "unused"]
"""What a method does with the image tower of its CLIP.

- `frozen`: it stays in the CLIP, frozen like the rest, save the parameters that `FrozenCLIP.freeze` is told to train in
  place (`train_clip` of a method). Its weights are called `clip.model.visual.*`.
- `trained`: it is no part of the frozen CLIP: the method takes it over, by `FrozenCLIP.take_image_tower`, as a part of
  its own network, under the network's names.
- `unused`: there is none.
"""

Tower = TypeVar("Tower", bound=ImageTower)

RANDOM = "random"
"""What `pretrained` has to say so that a CLIP without any weights is built."""


class FrozenCLIP(nn.Module):
    """A CLIP model whose parameters do not train, except those that a method asks for by name.

    Freezing is a rule, not a habit: `freeze` decides by parameter name what trains, and `train` keeps every frozen
    tower in evaluation mode (BatchNorm statistics and dropout included).

    Args:
        model: An open_clip `CLIP` or `CustomTextCLIP`; it loses its image tower unless that stays `frozen`.
        name: Model name, kept for the checkpoint's record.
        pretrained: Tag or file that the weights came from; None for random weights.
        mean: Channel means of the image normalisation, for values in 0..1.
        std: Channel standard deviations, likewise.
        known_tokens: Token ids that the text tower was trained on, where that is only a part of the tokenizer's.
        image_tower: What the method does with the image tower.

    Attributes:
        normalize: Brings images to the value range that the image tower was trained with.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        pretrained: str | None = None,
        mean: Sequence[float] = OPENAI_DATASET_MEAN,
        std: Sequence[float] = OPENAI_DATASET_STD,
        known_tokens: frozenset[int] | None = None,
        image_tower: ImageTowerUse = "frozen",
    ) -> None:
        super().__init__()
        self.model = model
        # A view, no module: a tower that the method will own is not registered here.
        self._to_take = self.image_tower if image_tower == "trained" else None
        if image_tower != "frozen":
            del model.visual
        self.name = name
        self.pretrained = pretrained
        self.known_tokens = known_tokens
        self.normalize = ImageNormalization(mean, std)
        self._tokenizer = SimpleTokenizer(context_length=self.context_length)
        self.freeze()

    @property
    def image_tower(self) -> ImageTower | None:
        """The image tower; None where it is not a part of this CLIP, or of a kind that nobody has opened."""
        visual = getattr(self.model, "visual", None)
        return None if visual is None else open_tower(visual)

    def require_tower(self, kind: type[Tower], method: str) -> Tower:
        """Return the image tower, which has to be of a kind.

        Args:
            kind: `ViTTower`, `ConvTower`, or `ImageTower` for any that can be read cell by cell.
            method: Name of the method that needs it.

        Raises:
            InputError: The tower is of another kind.
        """
        tower = self.image_tower
        if not isinstance(tower, kind):
            raise InputError(
                f"{method} needs a CLIP with {kind.kind}; {self.name!r} has none: "
                f"set model.clip.model to {kind.examples}."
            )
        return tower

    def take_image_tower(self) -> ImageTower | None:
        """Hand a `trained` image tower over, all of it trainable and in training mode; there is only one to take.

        Returns:
            The tower; None where it is of a kind that nobody has opened.
        """
        tower, self._to_take = self._to_take, None
        if tower is not None:
            tower.visual.requires_grad_().train()
        return tower

    @property
    def mean(self) -> Tensor:
        """Channel means of the image normalisation, `(3, 1, 1)`."""
        return self.normalize.mean

    @property
    def std(self) -> Tensor:
        """Channel standard deviations of the image normalisation, `(3, 1, 1)`."""
        return self.normalize.std

    @property
    def text(self) -> Any:
        """The module that holds the text tower: the model itself, or its `text` attribute."""
        return getattr(self.model, "text", self.model)

    @property
    def context_length(self) -> int:
        """Number of tokens of one prompt."""
        return int(self.text.context_length)

    @property
    def embedding_dimension(self) -> int:
        """Size D of the joint image-text space."""
        projection = self.text.text_projection
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])

    @property
    def logit_scale(self) -> Tensor:
        """Scalar temperature of the contrastive training, `exp` applied."""
        scale: Tensor = self.model.logit_scale  # type: ignore[assignment]
        return scale.exp()

    def freeze(self, trainable: Sequence[str] = ()) -> None:
        """Set which parameters train.

        Args:
            trainable: Substrings; a parameter trains when its open_clip name contains one of them. Packed projections
                of attentions are split where `q_proj_weight`, `k_proj_weight` or `v_proj_weight` is asked for.

        Raises:
            InputError: A substring matches no parameter, so that a typing error cannot pass for a frozen model.
        """
        if any(projection in part for part in trainable for projection in PROJECTIONS):
            split_attention(self.model)
        names = [name for name, _ in self.model.named_parameters()]
        for part in trainable:
            if not any(part in name for name in names):
                raise InputError(f"No parameter of CLIP {self.name!r} has {part!r} in its name; nothing would train.")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(part in name for part in trainable))
        self._sha256: str | None = None
        self.train(self.training)

    def train(self, mode: bool = True) -> FrozenCLIP:
        """Switch the mode of the parts that train; frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.train(False)
        return self

    def frozen_names(self) -> set[str]:
        """Names of the weights that stay as they were loaded; statistics belong to the layer that they normalise."""
        names = set(self.model.state_dict())
        for prefix, module in self.model.named_modules():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
                trained = {name for name, value in own if value.requires_grad or not isinstance(value, nn.Parameter)}
                names -= {f"{prefix}.{name}" if prefix else name for name in trained}
        return names

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into token ids.

        Returns:
            int64 `(N, context_length)`.

        Raises:
            InputError: A prompt holds words that a small text tower was never trained on.
        """
        tokens: Tensor = self._tokenizer(list(prompts))
        if self.known_tokens is not None:
            unknown = sorted(set(tokens.unique().tolist()) - self.known_tokens)
            if unknown:
                words = sorted({self._tokenizer.decoder[i].replace("</w>", "") for i in unknown})
                more = f" and {len(words) - 5} more" if len(words) > 5 else ""
                raise InputError(
                    f"The text tower of {self.name!r} has never read {', '.join(map(repr, words[:5]))}{more}; use "
                    "words of the vocabulary 'toy', or another CLIP (--model.clip.model ViT-B-16 "
                    "--model.clip.pretrained openai)."
                )
        return tokens.to(self.mean.device)

    def encode_text(self, tokens: Tensor, chunk_size: int = 128) -> Tensor:
        """Run the text tower, in chunks to bound memory.

        Args:
            tokens: Token ids `(N, context_length)`.
            chunk_size: Number of prompts encoded at once.

        Returns:
            Raw text features `(N, D)`, not normalised.
        """
        with torch.no_grad():
            chunks = progress(tokens.split(chunk_size), f"Embedding {len(tokens)} prompts")
            return torch.cat([self.model.encode_text(chunk) for chunk in chunks])  # type: ignore[operator]

    @property
    def sha256(self) -> str:
        """Hash of all frozen CLIP weights: the identity that checkpoints record instead of the weights."""
        if self._sha256 is None:
            digest = hashlib.sha256()
            state = self.model.state_dict()
            for name in sorted(self.frozen_names()):
                digest.update(name.encode())
                digest.update(state[name].detach().cpu().contiguous().float().numpy().tobytes())
            self._sha256 = digest.hexdigest()
        return self._sha256


def build_clip(
    model: str = "toy_vit",
    pretrained: str | None = None,
    quick_gelu: bool | None = None,
    config: dict[str, Any] | None = None,
    image_tower: ImageTowerUse = "frozen",
) -> FrozenCLIP:
    """Build a frozen CLIP from a name, a tag, a file, or an explicit architecture.

    The activation is settled here once. OpenAI's weights (and a few others) were trained with QuickGELU,
    `x * sigmoid(1.702 x)`; running them with the exact GELU gives plausible but wrong features, without any error.
    With a tag the right activation is known and always used; with a file the user has to say it.

    Args:
        model: `toy_vit` or `toy_convnext` (shipped), or an open_clip model name such as `ViT-B-16`.
        pretrained: open_clip tag such as `openai` or `laion2b_s34b_b88k`, a local weights file, or `random`; None for
            the toy models' own weights. A network of one's own `config` has no released weights, so that None means
            random there too.
        quick_gelu: Activation of the transformer MLPs; needed with a weights file, otherwise left out.
        config: open_clip model configuration (`embed_dim`, `vision_cfg`, `text_cfg`) of a model that has no name; it
            goes by a name of the user's own.
        image_tower: What the method does with the image tower.

    Raises:
        InputError: Unknown model or tag, a wrong activation, a file that does not fit, or weights that are neither
            cached nor reachable.
    """
    if model in TOY_CLIPS and config is None:
        if pretrained is not None:
            raise InputError(f"CLIP {model!r} brings its own weights; leave `pretrained` out (given: {pretrained!r}).")
        toy = load_toy_clip(model)
        return FrozenCLIP(toy.model, model, "shipped", toy.mean, toy.std, toy.known_tokens, image_tower)

    released = open_clip.get_model_config(model)
    if config is not None and (released is not None or model in TOY_CLIPS):
        raise InputError(
            f"{model!r} is a released CLIP, but `config` describes one of your own; to use the released one leave "
            "`config` out (--model.clip.config null), else give yours another name (--model.clip.model)."
        )
    named_config = deepcopy(config) if config is not None else released
    if named_config is None:
        close = get_close_matches(model, [*TOY_CLIPS, *open_clip.list_models()], n=1)
        raise InputError(
            f"Unknown CLIP model {model!r}{f', did you mean {close[0]!r}?' if close else ';'} give "
            f"{' or '.join(TOY_CLIPS)}, or a name that `python -c 'import open_clip; print(open_clip.list_models())'` "
            "lists."
        )
    if pretrained == RANDOM:
        pretrained = None
    elif pretrained is None and config is None:
        tags = ", ".join([*open_clip.list_pretrained_tags_by_model(model), RANDOM])
        raise InputError(
            f"CLIP {model!r} has no weights, and would answer at random; set model.clip.pretrained to a file, or "
            f"to one of {tags}."
        )
    name_says = bool(named_config.get("quick_gelu", False))
    tag = open_clip.get_pretrained_cfg(model, pretrained) if pretrained and config is None else {}
    if tag:
        required = bool(tag.get("quick_gelu", False))
        if quick_gelu is not None and quick_gelu != required:
            raise InputError(
                f"Weights {pretrained!r} of {model!r} were trained with quick_gelu={required}; leave `quick_gelu` out."
            )
        named_config["quick_gelu"] = required
    elif pretrained:
        if not Path(pretrained).is_file():
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
            raise InputError(f"{pretrained!r} is neither a file nor a pretrained tag of {model!r}; tags: {tags}.")
        if quick_gelu is None and not name_says:
            raise InputError(
                f"The weights file {pretrained!r} does not tell which activation it was trained with; set "
                "`quick_gelu: true` (OpenAI's weights) or `quick_gelu: false` (most others)."
            )
        named_config["quick_gelu"] = name_says if quick_gelu is None else quick_gelu
    elif quick_gelu is not None:
        named_config["quick_gelu"] = quick_gelu

    network = build_network(named_config)
    mean, std = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    if pretrained:
        path = _download(model, pretrained, tag) if tag else pretrained
        if tag:
            mean, std = tuple(tag.get("mean") or mean), tuple(tag.get("std") or std)
        try:
            open_clip.load_checkpoint(network, path, strict=True)
        except (RuntimeError, KeyError) as error:
            problem = str(error).splitlines()[0]
            raise InputError(f"Weights {path!r} do not fit CLIP model {model!r}: {problem}") from error
    return FrozenCLIP(network, model, pretrained, mean, std, image_tower=image_tower)


def _download(model: str, pretrained: str, tag: dict[str, Any]) -> str:
    """Fetch the weights of a tag into open_clip's cache, or say why that is impossible."""
    try:
        return str(open_clip.download_pretrained(tag))
    except Exception as error:  # the hub client raises a dozen unrelated types when there is no network
        source = tag.get("hf_hub") or tag.get("url")
        raise InputError(
            f"The weights {pretrained!r} of CLIP {model!r} are not in the local cache and {source!r} could not be "
            f"reached ({type(error).__name__}); run once with network access (set HF_HOME to a shared folder), or give "
            "a local file: --model.clip.pretrained FILE --model.clip.quick_gelu true|false."
        ) from error
