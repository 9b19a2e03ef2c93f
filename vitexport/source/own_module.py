"""Input: a live module, or the file and function that make one; output: the same as of a named model.

Nothing is known of it but what it computes, and nothing is guessed: preprocessing is given, and whether it returns classes.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vitexport.artifacts import ModelSource
from vitexport.errors import InputError, UsageError
from vitexport.preprocess import PreprocessSpec
from vitexport.source.heads import Exposed, expose
from vitexport.source.preparation import told
from vitexport.source.request import ModelRequest, check_own, own_preprocess, split_model_from
from vitexport.source.trial import check_finite, state_sha256, trial_run


def is_own(request: ModelRequest) -> bool:
    """Whether a module of one's own is asked for, and no name."""
    return request.module is not None or request.model_from is not None


def load(request: ModelRequest) -> tuple[Exposed, ModelSource]:
    """As `vitexport.source.load`, of the module that the user hands over, which stays as it is.

    Raises:
        InputError: It cannot be copied or run, holds NaN, or the user's function fails or returns something else.
        UsageError: What is asked for is not known of it, or contradicts it.
    """
    check_own(request)
    module, spec = (request.module, None) if request.model_from is None else _called(request.model_from)
    preprocess = own_preprocess(request, spec)
    model = _copied(module)
    name, kind = str(request.name or type(model).__name__), f"{type(model).__module__}.{type(model).__qualname__}"
    origin = f"module:{type(model).__name__}"
    _settle_classes(model, request, name)
    check_finite(model, origin)
    digest = state_sha256(model)
    exposed = expose(model, request)
    peak, products = trial_run(exposed, preprocess, name)
    return exposed, ModelSource(
        name=name,
        architecture=kind,
        family="module",
        kwargs={},
        weights=origin,
        weights_sha256=digest,
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        peak_activation_elements=peak,
        outputs=exposed.specs,
        timm_version=timm.__version__,
        torch_version=str(torch.__version__),
        preprocess=preprocess,
        task=exposed.task,
        products=products,
        preparation=told(preprocess, request, {}, "", "of its PreprocessSpec"),
    )


def _copied(module: Any) -> nn.Module:
    """A copy in eval mode, float32, on the CPU, out of what training wraps around a module."""
    if not isinstance(module, nn.Module):
        raise UsageError(f"The model is a {type(module).__name__}; expected a torch.nn.Module, or the name of a model.")
    while isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(module, "_orig_mod"):
        module = module._orig_mod if hasattr(module, "_orig_mod") else module.module  # noqa: SLF001 - torch.compile's
    try:
        model = copy.deepcopy(module)
    except (RuntimeError, TypeError, AttributeError, RecursionError) as error:
        # A tensor that is the result of a computation, a lock, a file: Python and PyTorch say which.
        raise InputError(
            f"{type(module).__name__} cannot be copied ({_one_line(error)}), and the build must not change yours. Give a "
            "module whose tensors are parameters and buffers."
        ) from error
    return model.cpu().float().eval().requires_grad_(requires_grad=False)  # type: ignore[no-any-return]


def _settle_classes(model: nn.Module, request: ModelRequest, name: str) -> None:
    """Whether the output is classes, and how many: asked for, or by the attribute that timm's models have."""
    own, asked = getattr(model, "num_classes", None), request.num_classes
    if own is not None and asked is not None and own != asked:
        raise UsageError(f"num_classes is {asked}, but {name} says that it has {own}; leave it out, or correct the module.")
    if request.head == "none" and not hasattr(model, "reset_classifier"):
        # What it returns is what is wanted, whatever it calls it.
        model.num_classes = 0  # type: ignore[assignment]
    elif own is None and asked is None and request.head in (None, "classifier") and not request.features:
        raise UsageError(
            f"{name} has no attribute num_classes, so it is not known whether it returns classes. Give num_classes, or head "
            "'none' for an embedding or whatever else it returns."
        )
    elif own is None:
        model.num_classes = asked  # type: ignore[assignment]


def _called(model_from: str) -> tuple[Any, PreprocessSpec | None]:
    """What the user's function returns: a module, or a pair of a module and its `PreprocessSpec`."""
    path, name = split_model_from(model_from)
    function = getattr(_executed(path), name, None)
    if not callable(function):
        raise InputError(f"{path} has no function {name}; expected one that returns a torch.nn.Module.")
    try:
        made = function()
    except (Exception, SystemExit) as error:
        raise InputError(f"{name} of {path} failed: {type(error).__name__}: {_one_line(error)}.") from error
    pair: Sequence[Any] = made if isinstance(made, (tuple, list)) else (made, None)
    if len(pair) != 2 or not isinstance(pair[0], nn.Module) or not isinstance(pair[1], (PreprocessSpec, type(None))):
        seen = ", ".join(type(entry).__name__ for entry in made) if isinstance(made, (tuple, list)) else type(made).__name__
        raise InputError(
            f"{name} of {path} returned {seen}; expected a torch.nn.Module, or a module and a vitexport.PreprocessSpec."
        )
    return pair[0], pair[1]


def _executed(path: Path) -> Any:
    """The user's file as a module. It is run because the user named it; its neighbours can be imported, as by ``python``."""
    name = f"vitexport_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported; expected a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look classes up there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {_one_line(error)}.") from error
    return module


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
