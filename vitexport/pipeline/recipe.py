"""Input: the recipe of an earlier build; output: what it takes to make the same INT8 numbers again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vitexport.datasets import ImageSet
from vitexport.errors import InputError, UsageError
from vitexport.quantize.arithmetic import TENSORRT
from vitexport.quantize.settings import QuantSettings
from vitexport.stacks import Stack


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """An earlier build's decisions.

    Attributes:
        settings: How it quantized.
        stay_float: Modules that it left float to meet its budget; they are not searched for again.
        arithmetic: ``tensorrt``, or ``onnxruntime-cpu`` with its weight bits and activation type.
        images: sha256 of each calibration image by its path.
    """

    settings: QuantSettings
    stay_float: frozenset[str]
    arithmetic: str
    images: Mapping[str, str]

    def check_stack(self, stack: Stack) -> None:
        """Compare the arithmetic of `stack` with that of the earlier build.

        Raises:
            InputError: It is another one, so that other numbers would come out.
        """
        own = str(stack.arithmetic)
        if own != self.arithmetic:
            raise InputError(
                f"The recipe was made for {self.arithmetic}, and {stack.target.name} computes {own}. Give the target of "
                "that build, or build without `recipe`."
            )

    def check_layers(self, names: Collection[str]) -> None:
        """Check what stays float against the `names` of what this build would quantize.

        Raises:
            InputError: The recipe names something else: it was made of another model.
        """
        if unknown := sorted(self.stay_float - set(names)):
            raise InputError(
                f"The recipe leaves {unknown[0]} in float, which this model does not have or would not quantize; it was "
                "made of another model."
            )

    def check_images(self, calibration: ImageSet) -> None:
        """Check the calibration set against the earlier one.

        Raises:
            InputError: It holds other images, so that other numbers would come out.
        """
        seen = {file.relative: file.sha256 for file in calibration.files}
        differing = sorted(name for name in {*seen, *self.images} if seen.get(name) != self.images.get(name))
        if differing:
            raise InputError(
                f"The recipe was made with other calibration images: {len(differing)} of {len(self.images)} differ, the "
                f"first is {differing[0]}. Give the folder and `calibration_size` of that build, or build without `recipe`."
            )


def read_recipe(path: Path) -> Replay:
    """Read a bundle's ``manifest.json``, or the ``recipe`` in it as a file of its own.

    Raises:
        InputError: Not readable, or no recipe in it.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Recipe {path} cannot be read ({error}); give the manifest.json of an INT8 bundle.") from error
    if isinstance(data, dict) and "settings" not in data:
        data = data.get("recipe")
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no INT8 recipe; give the manifest.json of an INT8 bundle.")
    recipe: Mapping[str, Any] = data
    stay_float, images, settings = recipe.get("stay_float"), recipe.get("images"), recipe.get("settings")
    if not isinstance(stay_float, list) or not isinstance(images, dict) or not isinstance(settings, dict):
        raise InputError(f"The recipe in {path} is not what vitexport writes: settings, stay_float and images are expected.")
    try:
        chosen = QuantSettings.from_json(settings)
    except UsageError as error:
        raise InputError(f"The recipe in {path} is not usable: {error}") from error
    arithmetic = _arithmetic(*(recipe.get(key) for key in ("arithmetic", "weight_bits", "activation_type")))
    return Replay(settings=chosen, stay_float=frozenset(map(str, stay_float)), arithmetic=arithmetic, images=images)


def _arithmetic(kind: Any, weight_bits: Any, activation: Any) -> str:
    return str(TENSORRT) if kind == TENSORRT.name else f"{kind} with {weight_bits}-bit weights and {activation} activations"
