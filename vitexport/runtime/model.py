"""A loaded bundle and pictures enter; the model's outputs, probabilities and labels leave."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import BatchRange, Outputs
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
        class_names: In the order of the logits, their numbers as text where the bundle has no names; empty where the model
            names no classes.
    """

    outputs: Outputs
    class_names: tuple[str, ...] = ()

    @property
    def logits(self) -> NDArray[np.float32]:
        """float32 [n, classes].

        Raises:
            UsageError: The model has no such output.
        """
        return self._output("logits")

    @property
    def labels(self) -> tuple[str, ...]:
        """For each picture the name of its likeliest class."""
        return tuple(self.class_names[index] for index in self._scores().argmax(axis=1))

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Softmax of the logits, or what the model computed in their place; float32 [n, classes], each row sums to 1."""
        if "probabilities" in self.outputs:
            return self.outputs["probabilities"]
        shifted = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        result: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
        return result

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """For each picture the `count` likeliest labels with their probabilities, likeliest first."""
        probabilities = self.probabilities
        # By logits: softmax can round two of them to the same probability.
        order = np.argsort(-self._scores(), axis=1, kind="stable")[:, :count]
        return [
            [(self.class_names[index], float(row[index])) for index in best]
            for row, best in zip(probabilities, order, strict=True)
        ]

    def _scores(self) -> NDArray[np.float32]:
        """What ranks the classes."""
        given = self.outputs.get("probabilities")
        return self.logits if given is None else given

    def _output(self, name: str) -> NDArray[np.float32]:
        if name not in self.outputs:
            raise UsageError(f"The model has no output {name}; it has {', '.join(self.outputs)}.")
        return self.outputs[name]


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
                held than one call of the engine takes, and the outputs of all.

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
        """Run what `vitexport.preprocess.preprocess` made: float32 [n, 3, height, width].

        Raises:
            InputError: Another shape.
        """
        spec = self.manifest.preprocess
        if tensor.ndim != 4 or tensor.shape[1:] != (3, spec.height, spec.width) or not len(tensor):
            raise InputError(f"Input has shape {tensor.shape}; expected [n, 3, {spec.height}, {spec.width}], n >= 1.")
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
        names = self.manifest.labels or tuple(str(index) for index in range(self.manifest.num_classes or 0))
        return Prediction(outputs=outputs, class_names=names)


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
