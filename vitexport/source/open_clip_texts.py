"""Embed class names with open_clip's text tower, and check that the image tower is the one that it was trained with.

open_clip is imported here only, and only where `--classes` is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import timm
import torch
from torch import nn

from vitexport.errors import InputError, MissingDependencyError, UsageError
from vitexport.quiet import quiet
from vitexport.source.class_files import ClassEmbeddings
from vitexport.source.request import ModelRequest
from vitexport.source.timm_models import check_reachable, is_cached

LOCAL, HUB = "local-dir:", "hf-hub:"
# Cosine of the two image towers' embeddings; position embeddings resampled by timm and by open_clip differ in rounding.
SAME_TOWER = 0.999
BATCH = 32
# From float32 [n, 3, height, width] to [n, channels].
Tower: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """A model of open_clip.

    Attributes:
        name: As open_clip takes it: ``ViT-B-16``, ``local-dir:…`` or ``hf-hub:…``.
        weights: Its pretrained tag or a file; None where the name says it.
    """

    name: str
    weights: str | None = None

    def __str__(self) -> str:
        """As ``--open-clip`` takes it, without the folders of a local file."""
        if self.name.startswith(LOCAL):
            return f"{LOCAL}{Path(self.name.removeprefix(LOCAL)).name}"
        return self.name if self.weights is None else f"{self.name}:{Path(self.weights).name}"


def find_text_model(request: ModelRequest) -> TextModel:
    """The text tower that goes with the image tower; loads and downloads nothing.

    Raises:
        MissingDependencyError: open_clip is not installed.
        UsageError: It cannot be told from the model's name and was not given.
        InputError: There is no such model, or its weights are neither here nor to be had.
    """
    open_clip = _open_clip()
    found = _parse(request.open_clip) if request.open_clip else _from_timm_name(open_clip, request)
    if found.name.startswith(LOCAL):
        if not (Path(found.name.removeprefix(LOCAL)) / "open_clip_config.json").is_file():
            raise InputError(f"`open_clip={found.name}`: the folder has no open_clip_config.json.")
        return found
    if found.name.startswith(HUB):
        _check_hub(found, found.name.removeprefix(HUB))
        return found
    if found.name not in open_clip.list_models():
        raise InputError(
            f"open_clip {open_clip.__version__} has no model named {found.name!r}; open_clip.list_models() has."
        )
    tags = open_clip.list_pretrained_tags_by_model(found.name)
    if found.weights is None:
        raise UsageError(
            f"`open_clip={found.name}` names no weights; give {found.name}:TAG, with one of {', '.join(tags) or 'none'}, or "
            f"{found.name}:FILE."
        )
    if Path(found.weights).is_file():
        return found
    if found.weights not in tags:
        raise InputError(
            f"`open_clip={found.name}:{found.weights}`: no such file, and open_clip has no such weights; it has "
            f"{', '.join(tags) or 'none'}."
        )
    hub = str(open_clip.get_pretrained_cfg(found.name, found.weights).get("hf_hub") or "")
    _check_hub(found, hub.rpartition("/")[0])
    return found


def _open_clip() -> Any:
    try:
        with quiet("open_clip"):
            import open_clip
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "`classes` embeds the class names with open_clip's text tower, and open_clip is not installed here. "
            "Install it with: "
            "pip install open_clip_torch. Or give the embeddings with `class_embeddings`."
        ) from None
    return open_clip


def _parse(text: str) -> TextModel:
    if text.startswith((LOCAL, HUB)):
        return TextModel(name=text)
    name, colon, weights = text.partition(":")
    return TextModel(name=name, weights=weights if colon and weights else None)


def _from_timm_name(open_clip: Any, request: ModelRequest) -> TextModel:
    """open_clip and timm have one file on the hub for both towers; where they name the same, the models are the same."""
    repository = ""
    if request.pretrained and request.checkpoint is None:
        repository = _repository(str(request.name))
    matches = [
        (name, tag)
        for name, tag in open_clip.list_pretrained()
        if repository and str(open_clip.get_pretrained_cfg(name, tag).get("hf_hub") or "").rstrip("/") == repository
    ]
    # open_clip lists weights that were trained with QuickGELU under the model with GELU, too.
    matches = [(name, tag) for name, tag in matches if _same_activation(open_clip, name, tag)]
    if len(matches) != 1:
        seen = "nothing names it" if not matches else f"it could be {' or '.join(':'.join(match) for match in matches)}"
        raise UsageError(
            f"Which text tower belongs to {request.name} cannot be told from its name ({seen}); give `open_clip` "
            "MODEL:WEIGHTS "
            "with a pretrained tag or a file, for example ViT-B-16:laion2b_s34b_b88k, or `open_clip=local-dir:FOLDER`."
        )
    return TextModel(name=matches[0][0], weights=matches[0][1])


def _repository(name: str) -> str:
    if name.startswith(("hf-hub:", "hf_hub:")):
        return name.partition(":")[2].partition("@")[0]
    config: Any = None if ":" in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return ""
    repository = str(config.hf_hub_id or "")
    return f"timm/{config.architecture}.{config.tag}" if repository == "timm/" else repository


def _same_activation(open_clip: Any, name: str, tag: str) -> bool:
    config: Mapping[str, Any] = open_clip.get_model_config(name) or {}
    return bool(config.get("quick_gelu")) == bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))


def _check_hub(model: TextModel, repository: str) -> None:
    """Refuse in seconds when weights are neither in the cache nor to be had."""
    if repository and is_cached(repository):
        return
    check_reachable(
        f"The weights of open_clip's {model}", "Give local weights: `open_clip=NAME:FILE` or `open_clip=local-dir:FOLDER`."
    )


def embed_texts(
    model: TextModel, names: Sequence[str], templates: Sequence[str], tower: Tower, size: tuple[int, int]
) -> ClassEmbeddings:
    """Normalized embeddings of the class names, as open_clip's ``build_zero_shot_classifier`` computes them.

    Args:
        model: As `find_text_model` returns it.
        names: Of the classes.
        templates: Sentences with {} for the name; a class is the mean over all of them.
        tower: The image tower, from float32 [n, 3, height, width] to [n, channels]; compared with open_clip's own.
        size: Height and width of its images.

    Raises:
        InputError: open_clip cannot load the model; a text is too long for it; or the image tower is another one than that
            which the texts were trained with.
    """
    live, tokenize = _load(model, size)
    with torch.inference_mode():
        _check_tower(live, tower, size, model)
        values = torch.cat([_embed(live, tokenize, batch, templates) for batch in _batches(names)])
        bias = live.logit_bias
        return ClassEmbeddings(
            values=values.double().numpy().astype(np.float64),
            names=tuple(names),
            logit_scale=float(live.logit_scale.exp()),
            logit_bias=None if bias is None else float(bias),
            origin=f"open_clip {model}",
        )


def _load(model: TextModel, size: tuple[int, int]) -> tuple[Any, Callable[..., torch.Tensor]]:
    open_clip = _open_clip()
    try:
        with quiet("open_clip", "timm", "huggingface_hub", "transformers"):
            own = open_clip.get_model_config(model.name)["vision_cfg"]["image_size"]
            other = {} if (own, own) == size or own == [*size] else {"force_image_size": size}
            live = open_clip.create_model(model.name, pretrained=model.weights, require_pretrained=True, **other)
            tokenize = open_clip.get_tokenizer(model.name)
    except MemoryError:
        raise
    except Exception as error:
        # open_clip raises whatever its loaders and the tokenizer's library meet.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InputError(f"open_clip cannot load {model} with its tokenizer: {reason}") from error
    return live.float().eval(), tokenize


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), BATCH):
        yield names[start : start + BATCH]


def _embed(live: nn.Module, tokenize: Callable[..., torch.Tensor], names: Sequence[str], templates: Sequence[str]) -> Any:
    """Float32 [names, channels]: each text normalized, then the mean, then normalized again."""
    texts = [template.format(name) for name in names for template in templates]
    tokens = tokenize(texts)
    _check_length(tokenize, texts, tokens)
    embedded = nn.functional.normalize(live.encode_text(tokens), dim=-1)  # type: ignore[operator]
    mean = embedded.reshape(len(names), len(templates), -1).mean(dim=1)
    return nn.functional.normalize(mean, dim=-1)


def _check_length(tokenize: Callable[..., torch.Tensor], texts: Sequence[str], tokens: torch.Tensor) -> None:
    """Refuse what the tokenizer would cut off without a word."""
    length = tokens.shape[1]
    longer = tokenize(list(texts), context_length=2 * length)
    for text, whole in zip(texts, longer, strict=True):
        if int(whole[length:].ne(whole[-1]).sum()) or int(whole[length]) != int(whole[-1]):
            raise InputError(
                f"The text {text[:60]!r}… is longer than the {length} tokens that the text tower takes; shorten "
                "the class name or `templates`."
            )


def _check_tower(live: nn.Module, tower: Tower, size: tuple[int, int], model: TextModel) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    ours, theirs = tower(image), live.encode_image(image)  # type: ignore[operator]
    if ours.shape != theirs.shape:
        raise InputError(
            f"The image tower embeds in {ours.shape[-1]} channels and open_clip's {model} in {theirs.shape[-1]}; give the "
            "`open_clip` model that the tower belongs to."
        )
    cosine = float(nn.functional.cosine_similarity(ours, theirs).min())
    if not cosine >= SAME_TOWER:
        raise InputError(
            f"The image tower is not that of open_clip's {model}: their embeddings of one image have cosine {cosine:.3f}, "
            f"expected {SAME_TOWER} or more, so the texts may not fit. Give the `open_clip` model and weights that "
            "the tower belongs to; "
            "for a tower that was trained further, save the class embeddings and give `class_embeddings`."
        )
