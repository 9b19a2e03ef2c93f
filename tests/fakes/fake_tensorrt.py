"""TensorRT as its Python module looks in a given generation, with the rules of that generation and nothing more.

A member that a generation does not have is not there, so that asking for it fails as it would on the device. A plan is JSON
that says what was asked for; an engine of it "computes" the mean of each image, times 1, 2, 3 …, and where it is asked for
the mean over the channels, through the memory of `fakes.fake_cuda`. What is where is from NVIDIA's documentation and headers
(facts/tensorrt.md, section 2).
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import functools
import json
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from fakes import fake_inspector
from fakes.fake_cuda import FakeCuda

IMAGE, LOGITS, FEATURE, CLASSES = "image", "logits", "feature_0", 5


@dataclasses.dataclass(frozen=True)
class Generation:
    """What differs between releases of the library."""

    module: str
    version: str
    network_flags: dict[str, int]
    builder_flags: tuple[str, ...]
    sets_precision: bool
    compute_capabilities: tuple[int, ...] = ()
    optimization_level: bool = True
    progress_monitor: bool = True
    compatibility: bool = True
    refits_onnx: bool = True
    runtime_config: bool = False


FLAGS_SINCE_10 = ("TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL")
WEAK_FLAGS = ("FP16", "INT8", "GPU_FALLBACK", "OBEY_PRECISION_CONSTRAINTS")
GENERATIONS = {
    "8.5": Generation(
        module="tensorrt",
        version="8.5.2.2",
        network_flags={"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
        builder_flags=(*WEAK_FLAGS, "TF32"),
        sets_precision=True,
        optimization_level=False,
        progress_monitor=False,
        compatibility=False,
        refits_onnx=False,
    ),
    "8.6": Generation(
        module="tensorrt",
        version="8.6.2",
        network_flags={"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
        builder_flags=(*WEAK_FLAGS, "TF32", "VERSION_COMPATIBLE"),
        sets_precision=True,
        progress_monitor=False,
        refits_onnx=False,
    ),
    "10.3": Generation(
        module="tensorrt",
        version="10.3.0",
        network_flags={"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        builder_flags=(*WEAK_FLAGS, *FLAGS_SINCE_10),
        sets_precision=True,
    ),
    "10.13": Generation(
        module="tensorrt",
        version="10.13.3",
        network_flags={"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        builder_flags=(*WEAK_FLAGS, *FLAGS_SINCE_10, "EDITABLE_TIMING_CACHE"),
        sets_precision=True,
        runtime_config=True,
    ),
    "10.16": Generation(
        module="tensorrt",
        version="10.16.2",
        runtime_config=True,
        network_flags={"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        builder_flags=(*WEAK_FLAGS, *FLAGS_SINCE_10, "EDITABLE_TIMING_CACHE"),
        sets_precision=True,
    ),
    "11.4": Generation(
        module="tensorrt",
        version="11.4.1",
        runtime_config=True,
        network_flags={"STRONGLY_TYPED": 0},
        builder_flags=("GPU_FALLBACK", *FLAGS_SINCE_10),
        sets_precision=False,
    ),
    "RTX 1.7": Generation(
        module="tensorrt_rtx_bindings",
        version="1.7.1.116",
        runtime_config=True,
        network_flags={"STRONGLY_TYPED": 0},
        builder_flags=("GPU_FALLBACK", *FLAGS_SINCE_10),
        sets_precision=False,
        compute_capabilities=(75, 80, 86, 89, 120, 121),
    ),
}


@dataclasses.dataclass
class Conduct:
    """How the fake shall behave in a test, and what it did.

    Attributes:
        fails: ``builder``, ``parser``, ``build``, ``runtime``, ``deserialize``, ``refit``, ``context`` or
            ``execute``.
        says: What the library tells its logger when it fails, as (severity, message).
        layers: Names of the network's layers.
        precisions: Precision that each layer was set to.
        batch_max: Largest batch of the engine.
        tensors: What goes in and comes out of the engine, in the order in which it numbers them.
        computes_onnx: The engine computes what its ONNX file says, and its tensors are the file's; else `expected`.
        noise: What it adds to every output, as a share of its largest value: a fused kernel that is wrong.
        wrong_from: A tensor of the ONNX file from which on the engine computes wrong: a fused kernel that is.
        heals: Whether it computes right as soon as a tensor is marked, since that undoes the fusion.
        nameless: Layers do not have the names of the ONNX nodes.
        unfused: Modules whose attention is not fused.
        wide: Modules that are multiplied in FP32, whatever they should be in.
        inspector_says: What the engine inspector says in place of the truth.
        during_build: Called in the middle of a build, before its second step.
        built: Options of every build, in turn.
        dla_cores: How many Deep Learning Accelerators the device has.
        output_types: Type that each layer's output was set to.
        records: Whether what a context enqueues can be recorded as a CUDA graph.
        compiled: Kernels that contexts of TensorRT-RTX had to compile, in turn.
        specialized: When contexts of TensorRT-RTX were asked to compile the kernels of a shape, in turn.
    """

    fails: str = ""
    says: list[tuple[int, str]] = dataclasses.field(default_factory=lambda: [(1, "the reason")])
    layers: tuple[str, ...] = ("a", "b", "c")
    precisions: dict[str, str] = dataclasses.field(default_factory=dict)
    batch_max: int = 8
    tensors: tuple[str, ...] = (IMAGE, LOGITS)
    computes_onnx: bool = False
    noise: float = 0.0
    wrong_from: str = ""
    heals: bool = False
    nameless: bool = False
    unfused: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    inspector_says: str | None = None
    during_build: Callable[[], None] = lambda: None
    built: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    dla_cores: int = 0
    output_types: dict[str, str] = dataclasses.field(default_factory=dict)
    records: bool = True
    compiled: list[str] = dataclasses.field(default_factory=list)
    specialized: list[Any] = dataclasses.field(default_factory=list)


class Severity(enum.IntEnum):
    """How bad a message is: the smaller, the worse."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """What a logger is derived from."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


@dataclasses.dataclass
class Library:
    """One installed library: what its parts have in common."""

    generation: Generation
    conduct: Conduct
    cuda: FakeCuda

    def complain(self, logger: ILogger) -> None:
        for level, message in self.conduct.says:
            logger.log(Severity(level), message)

    def start(self, part: str, logger: ILogger) -> None:
        # What pybind11 makes of a factory that returned null (https://github.com/NVIDIA/TensorRT/issues/2913).
        if self.conduct.fails == part:
            self.complain(logger)
            raise TypeError("pybind11::init(): factory function returned nullptr")


def make_module(generation: Generation, conduct: Conduct, cuda: FakeCuda) -> types.ModuleType:
    """The module to put into `sys.modules` under the generation's name."""
    library = Library(generation, conduct, cuda)
    module: Any = types.ModuleType(generation.module)
    module.__spec__ = ModuleSpec(generation.module, None)
    module.__version__ = generation.version
    module.float32, module.float16 = "float32", "float16"
    module.ILogger = ILogger
    module.NetworkDefinitionCreationFlag = numbered("NetworkDefinitionCreationFlag", generation.network_flags)
    module.BuilderFlag = numbered("BuilderFlag", {name: index for index, name in enumerate(generation.builder_flags)})
    module.ProfilingVerbosity = numbered("ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2})
    module.LayerInformationFormat = numbered("LayerInformationFormat", {"ONELINE": 0, "JSON": 1})
    module.MemoryPoolType = numbered("MemoryPoolType", {"WORKSPACE": 0, "DLA_MANAGED_SRAM": 1})
    if generation.progress_monitor:
        module.IProgressMonitor = IProgressMonitor
    module.DeviceType = numbered("DeviceType", {"GPU": 0, "DLA": 1})
    if generation.compatibility:
        module.HardwareCompatibilityLevel = numbered("HardwareCompatibilityLevel", {"NONE": 0, "AMPERE_PLUS": 1})
    module.Refitter = Refitter
    if generation.refits_onnx:
        module.OnnxParserRefitter = OnnxParserRefitter
    if generation.compute_capabilities:
        capabilities = {f"SM{number}": number for number in generation.compute_capabilities}
        module.ComputeCapability = numbered("ComputeCapability", {"NONE": 0, "CURRENT": 1, **capabilities})
        module.DynamicShapesKernelSpecializationStrategy = Specialization
    module.Builder = functools.partial(Builder, library)
    module.OnnxParser = functools.partial(OnnxParser, library)
    module.Runtime = functools.partial(HostCodeRuntime if generation.compatibility else Runtime, library)
    made: types.ModuleType = module
    return made


def numbered(name: str, members: dict[str, int]) -> Any:
    """An enumeration as pybind11 makes it: members by name, each convertible to its number."""
    make: Any = enum.IntEnum
    return make(name, members)


# ---- building


class Tensor:
    """Has a name, which can be changed, and knows what it holds."""

    __slots__ = ("dtype", "name", "source")

    def __init__(self, name: str) -> None:
        self.name = self.source = name
        self.dtype = "float32"


class Network:
    """Remembers its flags, and which tensors were marked."""

    def __init__(self, library: Library, flags: int) -> None:
        self.library, self.flags = library, flags
        self.is_dynamic = False
        self.onnx = b""
        self.layers = {name: (f"{name} output",) for name in library.conduct.layers}
        self.marked: list[Tensor] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> Any:
        name, outputs = list(self.layers.items())[index]
        if self.library.generation.sets_precision:
            return WeakLayer(name, outputs, self.library.conduct)
        return Layer(name, outputs)

    def add_identity(self, tensor: Tensor) -> Layer:
        make = (
            functools.partial(WeakLayer, conduct=self.library.conduct) if self.library.generation.sets_precision else Layer
        )
        layer = make("cast", ("(Unnamed Layer* 7) [Cast]_output",))
        layer.get_output(0).source = tensor.source
        return layer

    def mark_output(self, tensor: Tensor) -> None:
        # The real one refuses a name that a tensor of the network has.
        assert not any(tensor.name in outputs for outputs in self.layers.values()), "an output with the name of a tensor"
        self.marked.append(tensor)


class CastingNetwork(Network):
    """Has a layer for casts too."""

    def add_cast(self, tensor: Tensor, to_type: str) -> Layer:
        assert to_type == "float32"
        return self.add_identity(tensor)


class Layer:
    """Has its name, and its outputs, and takes nothing."""

    __slots__ = ("_outputs", "name")

    def __init__(self, name: str, outputs: tuple[str, ...]) -> None:
        self.name = name
        self._outputs = [Tensor(output) for output in outputs]

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_output(self, index: int) -> Tensor:
        return self._outputs[index]


class WeakLayer(Layer):
    """Takes a precision and the type of its one output too."""

    __slots__ = ("conduct",)

    def __init__(self, name: str, outputs: tuple[str, ...], conduct: Conduct) -> None:
        super().__init__(name, outputs)
        self.conduct = conduct

    def _set_precision(self, value: str) -> None:
        self.conduct.precisions[self.name] = value

    precision = property(fset=_set_precision)

    def set_output_type(self, index: int, value: str) -> None:
        assert index < self.num_outputs
        self.conduct.output_types[self.name] = value


class Profile:
    """Remembers its shapes."""

    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = [list(low), list(best), list(high)]


class IProgressMonitor:
    """What a monitor is derived from."""


class TimingCache:
    """What kernels took, as bytes that name the library's version."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> memoryview:
        return memoryview(self.data)


class BuilderConfig:
    """Remembers flags and profiles; takes no attribute that its generation does not have."""

    builder_optimization_level: int
    progress_monitor: Any
    profiling_verbosity: Any = None

    def __init__(self, generation: Generation) -> None:
        optional = {
            "builder_optimization_level": generation.optimization_level,
            "progress_monitor": generation.progress_monitor,
            "hardware_compatibility_level": generation.compatibility,
        }
        own = {"flags", "profiles", "version", "pools", "cache"}
        own |= {"capabilities", "num_compute_capabilities"} if generation.compute_capabilities else set()
        own |= {"default_device_type", "DLA_core", "profiling_verbosity"}
        object.__setattr__(self, "_members", own | {name for name, there in optional.items() if there})
        self.flags: set[Any] = set()
        self.profiles: list[Profile] = []
        self.version = generation.version
        self.pools: dict[str, int] = {}
        self.cache: TimingCache | None = None
        if generation.optimization_level:
            self.builder_optimization_level = 3

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in object.__getattribute__(self, "_members"):
            raise AttributeError(f"'BuilderConfig' object has no attribute {name!r}")
        object.__setattr__(self, name, value)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def create_timing_cache(self, serialized: bytes) -> TimingCache:
        return TimingCache(serialized)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:  # noqa: FBT001 - TensorRT's own
        if cache.data and not ignore_mismatch and not cache.data.startswith(self.version.encode()):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class TargetedConfig(BuilderConfig):
    """Takes compute capabilities too: TensorRT-RTX."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation)
        self.capabilities: list[int] = []

    @property
    def num_compute_capabilities(self) -> int:
        return len(self.capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        self.capabilities = [0] * count

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self.capabilities[index] = int(capability)
        return True


class Builder:
    """Builds plans that say what was asked for."""

    def __init__(self, library: Library, logger: ILogger) -> None:
        library.start("builder", logger)
        self.library, self.logger = library, logger

    @property
    def num_DLA_cores(self) -> int:  # noqa: N802 - TensorRT's own
        return self.library.conduct.dla_cores

    def create_network(self, flags: int = 0) -> Network:
        make = CastingNetwork if self.library.generation.compatibility else Network
        return make(self.library, flags)

    def create_builder_config(self) -> BuilderConfig:
        generation = self.library.generation
        return TargetedConfig(generation) if generation.compute_capabilities else BuilderConfig(generation)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytearray | None:
        if reason := self._refusal(network, config):
            self.logger.log(Severity.ERROR, reason)
            return None
        if self.library.conduct.fails == "build":
            self.library.complain(self.logger)
            return None
        cached = config.cache.data.decode() if config.cache is not None else None
        self.library.conduct.built.append(
            {
                "pools": dict(config.pools),
                "level": getattr(config, "builder_optimization_level", None),
                "cache": cached,
                "hardware": getattr(getattr(config, "hardware_compatibility_level", None), "name", None),
                "dla": getattr(config, "DLA_core", None),
            }
        )
        if not self._steps(getattr(config, "progress_monitor", None)):
            return None
        if config.cache is not None and not cached:
            config.cache.data = f"{config.version}: timings".encode()
        names = {flag.name for flag in config.flags}
        plan = {
            "onnx": base64.b64encode(self._computed(network)).decode() if self.library.conduct.computes_onnx else None,
            "detailed": getattr(config.profiling_verbosity, "name", "") == "DETAILED",
            "stripped": "STRIP_PLAN" in names,
            "brings_runtime": "VERSION_COMPATIBLE" in names,
            "dla": getattr(config, "DLA_core", None),
            "version": config.version,
            "network_flags": network.flags,
            "flags": sorted(flag.name for flag in config.flags),
            "profiles": [profile.shapes for profile in config.profiles],
            "capabilities": getattr(config, "capabilities", None),
        }
        return bytearray(json.dumps(plan).encode())

    def _computed(self, network: Network) -> bytes:
        """The graph that the engine will compute: with the fault of this library, and the marked tensors."""
        conduct = self.library.conduct
        model = onnx.load_from_string(network.onnx)
        if conduct.wrong_from and not (conduct.heals and network.marked):
            _break(model.graph, conduct.wrong_from)
        for tensor in network.marked:
            model.graph.node.append(onnx.helper.make_node("Cast", [tensor.source], [tensor.name], to=onnx.TensorProto.FLOAT))
            model.graph.output.append(onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, None))
        data: bytes = model.SerializeToString()
        return data

    def _steps(self, monitor: Any) -> bool:
        """Tell the monitor; whether it wants to go on."""
        if monitor is None:
            self.library.conduct.during_build()
            return True
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Tactics", "Building Engine", 7)
        going = monitor.step_complete("Tactics", 0)
        self.library.conduct.during_build()
        monitor.phase_finish("Tactics")
        for step in range(2):
            going = going and monitor.step_complete("Building Engine", step)
        monitor.phase_finish("Building Engine")
        return bool(going)

    def _refusal(self, network: Network, config: BuilderConfig) -> str | None:
        generation = self.library.generation
        if generation.version.startswith("8.") and not network.flags & 1 << generation.network_flags["EXPLICIT_BATCH"]:
            return "an explicit batch is required"
        if network.flags & ~sum(1 << value for value in generation.network_flags.values()):
            return f"unknown network flags {network.flags}"
        if network.is_dynamic and not config.profiles:
            return "a network with dynamic shapes needs an optimization profile"
        return None


def _break(graph: onnx.GraphProto, tensor: str) -> None:
    """Let `tensor` be half as large again as it should be, which no LayerNormalization behind a sum takes back."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    [index] = [index for index, node in enumerate(graph.node) if tensor in node.output]
    graph.node[index].output[0] = f"{tensor} before"
    factor = onnx.helper.make_tensor(f"{tensor} factor", types[tensor], [], [1.5])
    graph.initializer.append(factor)
    graph.node.insert(index + 1, onnx.helper.make_node("Mul", [f"{tensor} before", factor.name], [tensor]))


class OnnxParser:
    """Tells static from dynamic files, and the layers of one that will be computed."""

    def __init__(self, library: Library, network: Network, logger: ILogger) -> None:
        self.library, self.network = library, network
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        self.network.onnx = Path(path).read_bytes()
        self.network.is_dynamic = self.network.onnx == b"dynamic onnx"
        if self.library.conduct.computes_onnx:
            graph = onnx.load_from_string(self.network.onnx).graph
            prefix = "(Unnamed) " if self.library.conduct.nameless else ""
            self.network.layers = {f"{prefix}{node.name}": tuple(node.output) for node in graph.node}
        self.num_errors = 1 if self.library.conduct.fails == "parser" else 0
        return not self.num_errors

    def get_error(self, index: int) -> Any:
        return types.SimpleNamespace(desc=lambda: f"In node {index} with name: odd and operator: Odd")


# ---- running


class Runtime:
    """Loads anything; takes no attribute that its generation does not have."""

    __slots__ = ("DLA_core", "library", "logger")

    def __init__(self, library: Library, logger: ILogger) -> None:
        self.DLA_core = -1
        # Without a driver the real one ends the process here.
        assert not library.cuda.no_gpu, "TensorRT was called on a machine without a GPU"
        library.start("runtime", logger)
        self.library, self.logger = library, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if self.library.conduct.fails == "deserialize":
            self.library.complain(self.logger)
            return None
        facts = _facts_of(plan)
        if facts.get("brings_runtime") and not getattr(self, "engine_host_code_allowed", False):
            self.logger.log(Severity.ERROR, "the plan holds host code, which is not allowed")
            return None
        if facts.get("version", self.library.generation.version) != self.library.generation.version and not facts.get(
            "brings_runtime"
        ):
            self.logger.log(Severity.ERROR, "the plan was made by another version")
            return None
        if facts.get("dla") is not None and facts["dla"] != self.DLA_core:
            refusal = f"the plan is for DLA core {facts['dla']}, and {self.DLA_core} was chosen"
            self.logger.log(Severity.ERROR, refusal)
            return None
        return Engine(self.library, _onnx_of(facts), facts)


class HostCodeRuntime(Runtime):
    """May be allowed to run the code that a plan brings."""

    __slots__ = ("engine_host_code_allowed",)

    def __init__(self, library: Library, logger: ILogger) -> None:
        super().__init__(library, logger)
        self.engine_host_code_allowed = False


def _facts_of(plan: bytes) -> dict[str, Any]:
    """What a plan says of itself; nothing if it is just any bytes."""
    try:
        facts: dict[str, Any] = json.loads(plan)
    except ValueError:
        return {}
    return facts


def _onnx_of(facts: dict[str, Any]) -> ort.InferenceSession | None:
    """The graph in a plan, run node by node as it is written; None in a plan that computes `expected`."""
    data = facts.get("onnx")
    if data is None:
        return None
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(base64.b64decode(data), options, providers=["CPUExecutionProvider"])


class Engine:
    """Names its tensors and makes contexts; without its weights it has to be refitted first."""

    def __init__(self, library: Library, session: ort.InferenceSession | None, facts: dict[str, Any]) -> None:
        self.library, self.session, self.facts = library, session, facts
        self.is_stripped = bool(facts.get("stripped"))
        tensors = library.conduct.tensors
        if session is not None:
            tensors = tuple(value.name for value in (*session.get_inputs(), *session.get_outputs()))
        self.tensors = tensors
        self.num_io_tensors = len(tensors)
        if library.generation.runtime_config:
            self.create_runtime_config = RuntimeConfig if library.generation.compute_capabilities else PlainRuntimeConfig

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index]

    def create_engine_inspector(self) -> Inspector | None:
        return None if self.library.conduct.fails == "inspector" else Inspector(self)

    def create_execution_context(self, config: PlainRuntimeConfig | None = None) -> Context | None:
        if self.library.conduct.fails == "context" or self.is_stripped:
            return None
        if self.library.generation.compute_capabilities:
            self.library.conduct.specialized.append(getattr(config, "dynamic_shapes_kernel_specialization_strategy", None))
        if config is not None and config.cache is not None:
            kernels = f"{self.library.generation.version}: kernels".encode()
            if config.cache.data != kernels:
                self.library.conduct.compiled.append(self.library.generation.version)
            config.cache.data = kernels
        return (RtxContext if self.library.generation.compute_capabilities else Context)(self.library, self)


class RuntimeCache:
    """Kernels of TensorRT-RTX, as bytes that name its version."""

    def __init__(self) -> None:
        self.data = b""

    def serialize(self) -> memoryview:
        return memoryview(self.data)

    def deserialize(self, data: bytes) -> bool:
        if not data.endswith(b": kernels"):
            return False
        self.data = data
        return True


class PlainRuntimeConfig:
    """That of full TensorRT, which holds no cache."""

    cache: RuntimeCache | None = None


class Specialization(enum.IntEnum):
    """When kernels for one shape are compiled."""

    LAZY = 0
    EAGER = 1
    NONE = 2


class RuntimeConfig(PlainRuntimeConfig):
    """Holds a cache."""

    def __init__(self) -> None:
        self.cache: RuntimeCache | None = None
        self.dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Refitter:
    """Puts weights into an engine."""

    def __init__(self, engine: Engine, logger: ILogger) -> None:
        self.engine, self.logger, self.has_weights = engine, logger, False

    def refit_cuda_engine(self) -> bool:
        self.engine.is_stripped = not self.has_weights
        return self.has_weights


class OnnxParserRefitter:
    """Takes them from the ONNX file."""

    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self.refitter = refitter

    def refit_from_file(self, path: str) -> bool:
        self.refitter.has_weights = Path(path).is_file() and self.refitter.engine.library.conduct.fails != "refit"
        return self.refitter.has_weights


class Inspector:
    """Says what became of the graph in a plan, in the layout of its generation."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def get_engine_information(self, format: Any) -> str:  # noqa: A002 - TensorRT's own
        assert format.name == "JSON"
        library = self.engine.library
        conduct = library.conduct
        if conduct.inspector_says is not None:
            return conduct.inspector_says
        facts, layers = self.engine.facts, []
        if facts.get("onnx") is not None:
            data = base64.b64decode(facts["onnx"])
            layers = fake_inspector.layers_of(data, unfused=conduct.unfused, wide=conduct.wide)
        major = int(library.generation.version.split(".")[0])
        layout = {8: "8", 10: "10"}.get(major, "11")
        return fake_inspector.say(layers, self.engine.tensors, layout=layout, detailed=bool(facts.get("detailed")))


class Context:
    """Computes `expected` from and to the fake device's memory, when the stream gets to it."""

    def __init__(self, library: Library, engine: Engine) -> None:
        self.library, self.engine = library, engine
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Any) -> bool:
        if name != IMAGE or len(shape) != 4 or not 1 <= shape[0] <= self.library.conduct.batch_max:
            return False
        self.shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        count, _, height, width = self.shape
        if self.engine.session is not None and name != IMAGE:
            [output] = [output for output in self.engine.session.get_outputs() if output.name == name]
            return (count, *output.shape[1:])
        return {IMAGE: self.shape, LOGITS: (count, CLASSES), FEATURE: (count, height, width)}[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.library.cuda.is_capturing and not self.library.conduct.records:
            return False
        # The real one refuses to run while a tensor of the engine has no address.
        if self.library.conduct.fails == "execute" or self.addresses.keys() != set(self.engine.tensors):
            return False
        work = functools.partial(compute, self.library, self.engine.session, self.shape, dict(self.addresses))
        self.library.cuda.enqueue(stream_handle, work)
        return True


class RtxContext(Context):
    """Tells whether it can be recorded."""

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream in self.library.cuda.queues
        return self.library.conduct.records


def compute(
    library: Library, session: ort.InferenceSession | None, shape: tuple[int, ...], addresses: dict[str, int]
) -> None:
    """One inference."""
    size = int(np.prod(shape)) * 4
    images = np.frombuffer(library.cuda.read(addresses[IMAGE], size), np.float32).reshape(shape)
    for name in addresses.keys() - {IMAGE}:
        values = expected(name, images) if session is None else session.run([name], {IMAGE: images})[0]
        noise = np.random.default_rng(0).normal(0, 1, values.shape) * np.abs(values).max() * library.conduct.noise
        library.cuda.write(addresses[name], (values + noise).astype(np.float32).tobytes())


def expected(name: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the fake engine computes, float32: LOGITS [n, CLASSES] or FEATURE [n, height, width]."""
    if name == FEATURE:
        feature: NDArray[np.float32] = images.mean(axis=1)
        return feature
    means = images.reshape(len(images), -1).mean(axis=1, dtype=np.float64)
    return np.outer(means, np.arange(1, CLASSES + 1)).astype(np.float32)
