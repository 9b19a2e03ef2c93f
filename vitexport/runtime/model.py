"""Input: a loaded bundle and pictures; output: the model's outputs, probabilities and labels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import BINARY_NAMES, DEFAULT_THRESHOLD, BatchRange, Outputs, Task, is_binary, num_names
from vitexport.bundle import Bundle, Manifest
from vitexport.errors import InputError, ToolchainError, UsageError
from vitexport.preprocess import preprocess
from vitexport.runtime.backends import Backend
from vitexport.runtime.pictures import Picture, each


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model says of one or more pictures.

    Attributes:
        outputs: All that the model computed, by name of the output: float32 [n, …].
        class_names: Of the classes or labels in the order of the probabilities, their numbers as text where the bundle has
            no names; empty where the model has none.
        task: What the model is for.
        value_names: Of the values of a regression, as `class_names`.
        threshold: Probability from which on a label of a multi-label model is true.
    """

    outputs: Outputs
    class_names: tuple[str, ...] = ()
    task: Task = "classification"
    value_names: tuple[str, ...] = ()
    threshold: float = DEFAULT_THRESHOLD

    @property
    def logits(self) -> NDArray[np.float32]:
        """float32 [n, classes] or [n, labels]; [n, 1] where one logit tells two classes apart.

        Raises:
            UsageError: The model has no such output.
        """
        return self._output("logits")

    @property
    def values(self) -> NDArray[np.float32]:
        """What a regression computed, in the unit of its targets: float32 [n, values].

        Raises:
            UsageError: The model is no regression.
        """
        return self._output("values")

    @property
    def labels(self) -> tuple[str, ...]:
        """For each picture the name of its likeliest class.

        Raises:
            UsageError: Labels do not exclude each other (`above` gives those that are true), or there are no classes.
        """
        if self.task == "multi-label":
            raise UsageError("A picture has any number of labels of a multi-label model; above() gives those that are true.")
        return tuple(self.class_names[index] for index in self._scores().argmax(axis=1))

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Of each class or label, float32 [n, classes] or [n, labels].

        Classes share one whole: softmax of the logits (or what the model computed in their place), and of one logit both
        sides of its sigmoid, [n, 2]. Each label has a sigmoid of its own; these need not sum to 1.

        Raises:
            UsageError: The model has neither classes nor labels.
        """
        if "probabilities" in self.outputs:
            return self.outputs["probabilities"]
        scores = self._scores()
        if self.task == "multi-label" or self._is_binary:
            return _sigmoid(scores)
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
        result: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
        return result

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """For each picture the `count` most probable classes or labels with their probabilities, in falling order.

        Raises:
            UsageError: The model has neither classes nor labels.
        """
        probabilities = self.probabilities
        # By logits: softmax and sigmoid can round two of them to the same probability.
        order = np.argsort(-self._scores(), axis=1, kind="stable")[:, :count]
        return [
            [(self.class_names[index], float(row[index])) for index in best]
            for row, best in zip(probabilities, order, strict=True)
        ]

    def above(self, threshold: float | None = None) -> list[list[tuple[str, float]]]:
        """For each picture the labels of at least `threshold` (None: the bundle's own), the most probable first.

        Raises:
            UsageError: The model is not multi-label, or `threshold` is not above 0 and below 1.
        """
        if self.task != "multi-label":
            raise UsageError(f"Only a multi-label model has labels above a threshold, and this one is for {self.task}.")
        least = self.threshold if threshold is None else threshold
        if not 0 < least < 1:
            raise UsageError(f"A threshold is a probability above 0 and below 1, and not {least:g}.")
        true = np.sum(self.logits >= math.log(least / (1 - least)), axis=1)
        return [ranked[:count] for ranked, count in zip(self.top(len(self.class_names)), true, strict=True)]

    @property
    def _is_binary(self) -> bool:
        logits = self.outputs.get("logits")
        return self.task == "classification" and logits is not None and logits.shape[1:] == (1,)

    def _scores(self) -> NDArray[np.float32]:
        """What ranks the classes or labels: of one logit its negative and itself."""
        if "probabilities" in self.outputs:
            return self.outputs["probabilities"]
        if self._is_binary:
            return np.concatenate([-self.logits, self.logits], axis=1)
        return self.logits

    def _output(self, name: str) -> NDArray[np.float32]:
        if name not in self.outputs:
            raise UsageError(f"The model has no output {name}; it has {', '.join(self.outputs)}.")
        return self.outputs[name]


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without overflow: exp is taken of negative numbers alone."""
    small = np.exp(-np.abs(logits))
    result: NDArray[np.float32] = np.where(logits >= 0, 1, small) / (1 + small)
    return result


class Model:
    """A loaded bundle. Make it with `load`.

    Several threads may call one model at once: each gets the answer that it would get alone. ONNX Runtime computes their
    calls at the same time; a TensorRT engine one after another. Close it when no thread is using it any longer.
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, fallback: str | None = None) -> None:
        """Args:
        bundle: Verified.
        backend: What runs it.
        fallback: Why that is not what the bundle was built for; None if it is, or was asked for by name.
        """
        self.bundle = bundle
        self.backend = backend
        self.fallback = fallback

    def close(self) -> None:
        """Free what the engine library holds on the device; the model cannot be used afterwards."""
        self.backend.close()

    def __enter__(self) -> Model:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    def predict(self, images: Picture | Iterable[Picture]) -> Prediction:
        """Run one picture, or several.

        Args:
            images: A path, the bytes of a picture's file or a binary stream of them, a Pillow image, or a uint8 array
                [height, width, 3]; or any iterable of these. A generator is drawn from batch by batch: no more pictures are
                held than one call of the engine takes, and the outputs of all. A model of one channel takes the same and
                sees them in grey; one of two, or of more than three, takes arrays uint8 [height, width, channels] and paths
                of ``.npy`` files.

        Raises:
            InputError: A picture cannot be read, or there is none.
        """
        parts = list(self._parts(images))
        if not parts:
            raise InputError("No images were given; expected one or more.")
        return self._prediction(join(parts))

    def predict_batches(self, images: Picture | Iterable[Picture]) -> Iterator[Prediction]:
        """As `predict`, batch by batch as the engine takes them, so that the outputs of all need not be held either.

        Raises:
            InputError: A picture cannot be read.
        """
        for outputs in self._parts(images):
            yield self._prediction(outputs)

    def predict_tensor(self, tensor: NDArray[np.float32]) -> Prediction:
        """Run what `vitexport.preprocess.preprocess` made: float32 [n, channels, height, width].

        Raises:
            InputError: Another shape.
        """
        spec = self.manifest.preprocess
        expected = (spec.channels, spec.height, spec.width)
        if tensor.ndim != 4 or tensor.shape[1:] != expected or not len(tensor):
            raise InputError(f"Input has shape {tensor.shape}; expected [n, {', '.join(map(str, expected))}], n >= 1.")
        return self._prediction(run_in_batches(self.backend, tensor, self.manifest.batch))

    def _parts(self, images: Picture | Iterable[Picture]) -> Iterator[Outputs]:
        """Outputs batch by batch: no more preprocessed pictures are held than one call of the engine takes."""
        pictures, spec = each(images), self.manifest.preprocess
        while part := [preprocess(image, spec) for image in itertools.islice(pictures, self.manifest.batch.maximum)]:
            yield run_in_batches(self.backend, np.stack(part), self.manifest.batch)

    def _prediction(self, outputs: Outputs) -> Prediction:
        for name, values in outputs.items():
            if bad := int((~np.isfinite(values.reshape(len(values), -1))).any(axis=1).sum()):
                raise ToolchainError(
                    f"{self.backend.description} computed NaN or infinity in {name} of {bad} of {len(values)} images. "
                    "Run vitexport validate on this machine; do not use its predictions."
                )
        manifest = self.manifest
        names = manifest.labels or tuple(str(index) for index in range(num_names(manifest.outputs) or 0))
        if manifest.labels is None and is_binary(manifest.outputs):
            names = BINARY_NAMES
        is_named = manifest.task in ("classification", "multi-label")
        return Prediction(
            outputs=outputs,
            class_names=names if is_named else (),
            task=manifest.task,
            value_names=names if manifest.task == "regression" else (),
            threshold=manifest.threshold,
        )


def join(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of several batches, one behind another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_in_batches(backend: Backend, tensor: NDArray[np.float32], batch: BatchRange) -> Outputs:
    """Outputs of any number of images from an artifact that takes `batch`: cut at the maximum, filled to the minimum.

    A last batch below the minimum is filled with its own last image, whose extra outputs are dropped.
    """
    results = []
    for start in range(0, len(tensor), batch.maximum):
        part = tensor[start : start + batch.maximum]
        lacking = max(batch.minimum - len(part), 0)
        filled = np.concatenate([part, np.repeat(part[-1:], lacking, axis=0)]) if lacking else part
        outputs = backend.run(np.ascontiguousarray(filled))
        results.append({name: values[: len(part)] for name, values in outputs.items()})
    return join(results)
