"""Input: a `ModelRequest`; output: the live module with the outputs that were asked for, and its `ModelSource`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import timm
import torch
from torch import nn

from vitexport.artifacts import ModelSource, ZeroShot, num_names
from vitexport.errors import UsageError
from vitexport.labels import read_labels
from vitexport.preprocess import PreprocessSpec
from vitexport.source import own_module, timm_models, torchvision_models, zero_shot
from vitexport.source.checkpoint import LOCAL, Checkpoint, load_checkpoint, open_checkpoint
from vitexport.source.class_files import read_class_embeddings
from vitexport.source.families import check_family
from vitexport.source.heads import Exposed, expose
from vitexport.source.open_clip_texts import find_text_model
from vitexport.source.preparation import preprocess_spec, told
from vitexport.source.request import ModelRequest, create_kwargs
from vitexport.source.trial import check_finite, state_sha256, trial_run

# What rooms without PyTorch call the module that they hand on.
LiveModel: TypeAlias = Exposed


def load(request: ModelRequest, *, weights: bool = True) -> tuple[Exposed, ModelSource]:
    """Create the model, load its weights and read its data config.

    Args:
        request: What the user asked for.
        weights: Off for a plan: untrained weights stand in for pretrained ones, and nothing is downloaded (but the
            configuration of an ``hf-hub:`` model, without which its shape is not known).

    Returns:
        The module in eval mode, float32, on the CPU, in the form that exports to the operators which engines fuse; and its
        `ModelSource`.

    Raises:
        InputError: The name is unknown or not a ViT; the weights cannot be had, need more than weights_only, or do not
            fit; the model does not take the asked image size.
        UsageError: The asked outputs contradict the model or one another.
    """
    if own_module.is_own(request):
        return own_module.load(request)
    check_available(request)
    checkpoint = open_checkpoint(request)
    made = _made(request, checkpoint, weights=weights)
    model, completed = made.model, made.request
    config = getattr(model, "pretrained_cfg", {})
    name = str(completed.name) if request.name is None else request.name
    family = _family(model, config)
    check_family(name, family)
    origin = _weights_name(request, config)
    check_finite(model, origin)
    model.eval().requires_grad_(requires_grad=False)
    preprocess = preprocess_spec(model, completed)
    labels, synsets = _class_names(model, request, made)
    digest = state_sha256(model)
    recorded = made.checkpoint.record.task if made.checkpoint is not None else None
    exposed = expose(model, completed, recorded)
    texts = None
    if completed.zero_shot:
        zero_shot.check_tower(model, completed, labels)
        texts, labels = zero_shot.add_classes(exposed, completed, (preprocess.height, preprocess.width), weights=weights)
        synsets, digest = None, _with_texts(digest, texts)
    peak, products = trial_run(exposed, preprocess, name)
    named = num_names(exposed.specs) is not None
    return exposed, ModelSource(
        name=name,
        architecture=str(config.get("architecture") or type(model).__name__),
        family=family,
        kwargs=create_kwargs(completed),
        weights=origin,
        weights_sha256=digest,
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        peak_activation_elements=peak,
        outputs=exposed.specs,
        timm_version=timm.__version__,
        torch_version=str(torch.__version__),
        preprocess=preprocess,
        task=exposed.task,
        labels=labels if named else None,
        synsets=synsets if named else None,
        products=products,
        loading=made.loading,
        preparation=_preparation(preprocess, request, made),
        notes=made.notes + _unused_names(made, labels),
        zero_shot=texts,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Made:
    """The live model, with the request as its file completed it and what was done to load it."""

    model: nn.Module
    request: ModelRequest
    checkpoint: Checkpoint | None
    loading: str | None = None
    notes: tuple[str, ...] = ()


def _made(request: ModelRequest, checkpoint: Checkpoint | None, *, weights: bool) -> _Made:
    """Create the model, with its weights where they are wanted."""
    completed = checkpoint.request if checkpoint is not None else request
    door = torchvision_models if torchvision_models.is_ours(str(completed.name)) else timm_models
    if checkpoint is None:
        return _Made(model=door.create(request, weights=weights), request=request, checkpoint=None)
    if not checkpoint.file.groups:
        # A folder's architecture, with weights that are random by request.
        return _Made(model=door.create(completed, weights=False), request=completed, checkpoint=checkpoint)
    model, done, loading = load_checkpoint(checkpoint, request, lambda asked: door.create(asked, weights=False))
    return _Made(model=model, request=done.request, checkpoint=done, loading=loading, notes=done.notes)


def _unused_names(made: _Made, labels: tuple[str, ...] | None) -> tuple[str, ...]:
    """A note where the file names other classes than the model has."""
    recorded = made.checkpoint.record.labels if made.checkpoint is not None else None
    if recorded is None or labels is not None or not getattr(made.model, "num_classes", 0):
        return ()
    count = getattr(made.model, "num_classes", 0)
    return (f"the checkpoint names {len(recorded)} classes and the model has {count}; the names are not used.",)


def _class_names(
    model: nn.Module, request: ModelRequest, made: _Made
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Labels that the file records, else those that come with the weights."""
    if made.checkpoint is None:
        if torchvision_models.is_ours(str(request.name)):
            return torchvision_models.class_names(model, request)
        return timm_models.class_names(model, request)
    labels = made.checkpoint.record.labels
    # Names of other classes than the model's are no names of these.
    classes = getattr(model, "num_classes", None)
    # One logit tells two classes apart, of which a file may name the positive one alone.
    fits = labels is not None and (len(labels) == classes or (classes == 1 and len(labels) == 2))
    return (labels if fits else None), None


def _with_texts(digest: str, texts: ZeroShot | None) -> str:
    """The hash of the weights with that of the class embeddings; two classifiers of one tower are two models."""
    return digest if texts is None else hashlib.sha256(f"{digest} {texts.sha256}".encode()).hexdigest()


def _family(model: nn.Module, config: Mapping[str, Any]) -> str:
    """The module that registers the architecture: MobileViT's classes, for one, are those of a convolutional network."""
    architecture = str(config.get("architecture") or "")
    known = timm.is_model(architecture)
    module = timm.model_entrypoint(architecture).__module__ if known else type(model).__module__
    return module.rpartition(".")[2]


def check_available(request: ModelRequest) -> None:
    """Refuse what cannot be loaded, as far as a few seconds can tell; loads and downloads nothing.

    Raises:
        InputError: The name is unknown, or pretrained weights are asked for and cannot be had.
    """
    zero_shot.check_request(request)
    if request.name is None:
        if request.checkpoint is None:
            raise UsageError("No model was given; give MODEL, a timm name, or `checkpoint` that says which model it is of.")
        return
    door = torchvision_models if torchvision_models.is_ours(request.name) else timm_models
    door.check_name(request.name)
    if request.checkpoint is None and request.pretrained:
        door.check_hub(request.name)
    if request.class_embeddings is not None:
        read_class_embeddings(request.class_embeddings)
    if request.classes is not None:
        read_labels(request.classes)
        find_text_model(request)


def _weights_name(request: ModelRequest, config: Mapping[str, Any]) -> str:
    if request.checkpoint is not None:
        return f"checkpoint:{request.checkpoint.name}"
    if request.pretrained and request.name is not None and request.name.startswith(LOCAL):
        return request.name
    if request.pretrained:
        return f"pretrained:{config.get('tag') or config.get('hf_hub_id') or request.name}"
    return f"random:seed={request.seed}"


def _preparation(spec: PreprocessSpec, request: ModelRequest, made: _Made) -> str:
    """Who says how pictures are prepared."""
    config, checkpoint = getattr(made.model, "pretrained_cfg", {}), made.checkpoint
    name = ".".join(part for part in (config.get("architecture"), config.get("tag")) if part) or str(made.request.name)
    library = "torchvision" if torchvision_models.is_ours(str(made.request.name)) else "timm"
    recorded = dataclasses.asdict(checkpoint.record) if checkpoint is not None else {}
    file = ""
    if checkpoint is not None:
        of_folder = "preprocessor_config.json" if checkpoint.record.transformers else checkpoint.record.where
        file = of_folder if checkpoint.file.config else checkpoint.file.file.name
    return told(spec, request, recorded, file, f"{library}'s default for {name.removeprefix('torchvision:')}")
