"""Output: the tools that are compared, how each is set, and where its packages come from.

Each of the others comes with its own placement and, marked ``linear``, held to the layers that vitexport quantizes: the
first is what its users get, the second compares how the same layers are quantized.
"""

from __future__ import annotations

import dataclasses

OURS = "vitexport"
# The least that vitexport can do: what ONNX Runtime's MinMax does, to see what the same work costs.
LEAST = "minmax"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One row of a table.

    Attributes:
        name: Of the row.
        environment: Of its packages: ``requirements-<environment>.txt``; None for vitexport's own.
        runner: Module in ``runners/``.
        option: Its last word, which chooses the tool's configuration.
        package: Distribution whose version is reported.
    """

    name: str
    environment: str | None
    runner: str
    option: str
    package: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    """Another quantizer: what its rows share."""

    title: str
    environment: str
    runner: str
    package: str

    def row(self, option: str) -> Contender:
        return Contender(
            name=f"{self.title} {option.replace('-', ' ')}",
            environment=self.environment,
            runner=self.runner,
            option=option,
            package=self.package,
        )


_ONNXRUNTIME = _Tool(title="ONNX Runtime", environment="onnxruntime-nncf", runner="run_onnxruntime", package="onnxruntime")
_MODELOPT = _Tool(title="ModelOpt", environment="modelopt", runner="run_modelopt", package="nvidia-modelopt")
_NNCF = _Tool(title="NNCF", environment="onnxruntime-nncf", runner="run_nncf", package="nncf")

CONTENDERS = (
    Contender(name=OURS, environment=None, runner="run_vitexport", option="", package="vitexport"),
    Contender(name=f"{OURS} {LEAST}", environment=None, runner="run_vitexport", option=LEAST, package="vitexport"),
    *(_ONNXRUNTIME.row(option) for option in ("minmax", "minmax-linear", "percentile-linear", "entropy-linear")),
    *(_MODELOPT.row(option) for option in ("max", "entropy", "max-linear", "entropy-linear")),
    *(_NNCF.row(option) for option in ("default", "symmetric", "symmetric-linear")),
)
