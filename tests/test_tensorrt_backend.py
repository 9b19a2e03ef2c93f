from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.fake_cuda import FakeCuda, Status
from fakes.fake_tensorrt import FEATURE, GENERATIONS, IMAGE, LOGITS, Conduct, expected, make_module
from numpy.typing import NDArray

from vitexport.artifacts import EngineRecipe
from vitexport.errors import DeviceError, MissingDependencyError, ToolchainError
from vitexport.runtime.backends import Backend, EngineFacts, GpuTimer, open_engine
from vitexport.runtime.backends.tensorrt_build import build_engine
from vitexport.runtime.backends.tensorrt_engine import TensorRtBackend

ALL_MODULES = (
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "cuda",
    "cuda.bindings",
    "cuda.bindings.runtime",
    "cuda.cudart",
)
NEW_BINDINGS = ("cuda", "cuda.bindings", "cuda.bindings.runtime")
OLD_BINDINGS = ("cuda", "cuda.cudart")
PROFILE = ((1, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4))
STRONG = EngineRecipe(
    typing="strong", flags=(), fp32_layers=(), profile=None, compute_capabilities=("8.9",), trtexec="trtexec"
)
WEAK = dataclasses.replace(STRONG, typing="weak", flags=("FP16", "INT8"))


@dataclasses.dataclass
class Machine:
    """What is installed on the machine that the test stands for; nothing, to begin with."""

    monkeypatch: pytest.MonkeyPatch
    folder: Path
    conduct: Conduct = dataclasses.field(default_factory=Conduct)
    cuda: FakeCuda = dataclasses.field(default_factory=FakeCuda)

    def __post_init__(self) -> None:
        self.monkeypatch.setenv("CUDA_MODULE_LOADING", "EAGER")
        for name in ALL_MODULES:
            self.monkeypatch.setitem(sys.modules, name, None)  # how Python marks an absent module

    def install(self, generation: str, bindings: tuple[str, ...] = NEW_BINDINGS) -> None:
        module = make_module(GENERATIONS[generation], self.conduct, self.cuda)
        for name, entry in {module.__name__: module, **self.cuda.modules(bindings)}.items():
            self.monkeypatch.setitem(sys.modules, name, entry)

    def build(self, recipe: EngineRecipe, library: str, onnx: bytes = b"static onnx") -> dict[str, Any]:
        path = self.folder / "model.onnx"
        path.write_bytes(onnx)
        plan: dict[str, Any] = json.loads(build_engine(path, recipe, library))
        return plan

    def open(self, facts: EngineFacts) -> Backend:
        path = self.folder / "model.engine"
        path.write_bytes(b"a plan")
        return open_engine(path, facts)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def library_of(generation: str) -> str:
    return "tensorrt-rtx" if generation.startswith("RTX") else "tensorrt"


def facts_of(generation: str, **changes: Any) -> EngineFacts:
    values: dict[str, Any] = {
        "library": library_of(generation),
        "library_version": GENERATIONS[generation].version,
        "compute_capabilities": ("8.9",),
        "target": "NVIDIA L4",
    }
    return EngineFacts(**(values | changes))


# ---- building


@pytest.mark.parametrize(
    ("generation", "recipe", "bits"),
    [
        # EXPLICIT_BATCH is bit 0 in 8.x and has no meaning from 10 on; STRONGLY_TYPED is bit 1 in 10.x and bit 0 later.
        ("8.5", WEAK, 0b01),
        ("8.6", WEAK, 0b01),
        ("10.3", WEAK, 0b00),
        ("10.3", STRONG, 0b10),
        ("10.16", STRONG, 0b10),
        ("11.4", STRONG, 0b01),
        ("RTX 1.7", STRONG, 0b01),
    ],
)
def test_the_network_has_the_flags_of_its_generation(
    generation: str, recipe: EngineRecipe, bits: int, machine: Machine
) -> None:
    machine.install(generation)
    plan = machine.build(recipe, library_of(generation))
    assert plan["network_flags"] == bits
    assert plan["flags"] == sorted(recipe.flags)


@pytest.mark.parametrize(("generation", "capabilities"), [("RTX 1.7", [75, 89, 120]), ("10.3", None), ("11.4", None)])
def test_compute_capabilities_are_set_where_the_library_takes_them(
    generation: str, capabilities: list[int] | None, machine: Machine
) -> None:
    machine.install(generation)
    recipe = dataclasses.replace(STRONG, compute_capabilities=("7.5", "8.9", "12.0"))
    assert machine.build(recipe, library_of(generation))["capabilities"] == capabilities


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_dynamic_graph_gets_its_profile(generation: str, machine: Machine) -> None:
    machine.install(generation)
    recipe = dataclasses.replace(WEAK if generation.startswith("8.") else STRONG, profile=PROFILE)
    plan = machine.build(recipe, library_of(generation), b"dynamic onnx")
    assert plan["profiles"] == [{"image": [list(shape) for shape in PROFILE]}]
    static = dataclasses.replace(recipe, profile=None)
    assert machine.build(static, library_of(generation))["profiles"] == []


def test_only_the_named_layers_are_held_in_float32(machine: Machine) -> None:
    machine.install("8.6")
    plan = machine.build(dataclasses.replace(WEAK, fp32_layers=("a", "c", "absent")), "tensorrt")
    assert machine.conduct.precisions == {"a": "float32", "c": "float32"}
    assert machine.conduct.output_types == machine.conduct.precisions
    # Without it, a precision is only a wish.
    assert "OBEY_PRECISION_CONSTRAINTS" in plan["flags"]


def test_a_strong_recipe_on_a_library_without_strong_typing_is_refused(machine: Machine) -> None:
    machine.install("8.6")
    with pytest.raises(ToolchainError, match=r"TensorRT 8\.6\.2 has no strongly typed networks .*`jetpack`"):
        machine.build(STRONG, "tensorrt")


@pytest.mark.parametrize("generation", ["11.4", "RTX 1.7"])
def test_a_weak_recipe_on_a_library_without_weak_typing_is_refused(generation: str, machine: Machine) -> None:
    machine.install(generation)
    with pytest.raises(ToolchainError, match=r"has no builder flag FP16.*`jetpack`"):
        machine.build(WEAK, library_of(generation))


@pytest.mark.parametrize("part", ["builder", "build"])
def test_a_failure_is_told_in_the_librarys_own_words(part: str, machine: Machine) -> None:
    machine.install("10.3")
    machine.conduct.fails = part
    machine.conduct.says = [
        (3, "chatter"),
        (2, "some warning"),
        (1, "Error Code 9:\n  out of\tideas"),
        (1, "Error Code 9:\n  out of\tideas"),
    ]
    with pytest.raises(ToolchainError) as caught:
        machine.build(STRONG, "tensorrt")
    message = str(caught.value)
    assert message.startswith("TensorRT 10.3.0 cannot ")
    assert message.endswith("some warning | Error Code 9: out of ideas")


def test_a_silent_failure_says_so(machine: Machine) -> None:
    machine.install("RTX 1.7")
    machine.conduct.fails, machine.conduct.says = "build", []
    with pytest.raises(ToolchainError, match=r"cannot compile model\.onnx for compute capability 8\.9: it gave no reason"):
        machine.build(STRONG, "tensorrt-rtx")


def test_what_the_parser_refuses_is_told(machine: Machine) -> None:
    machine.install("8.6")
    machine.conduct.fails = "parser"
    with pytest.raises(ToolchainError, match=r"TensorRT 8\.6\.2 cannot parse model\.onnx: .*node 0 with name: odd"):
        machine.build(WEAK, "tensorrt")


@pytest.mark.parametrize(
    ("library", "title", "extra"), [("tensorrt", "TensorRT", "tensorrt"), ("tensorrt-rtx", "TensorRT-RTX", "rtx")]
)
def test_an_absent_library_is_said_with_the_command_that_installs_it(
    library: str, title: str, extra: str, machine: Machine
) -> None:
    other = "RTX 1.7" if library == "tensorrt" else "10.3"
    hint = r" \(on a Jetson it comes with JetPack: .*--system-site-packages\)" if library == "tensorrt" else ""
    machine.install(other)
    with pytest.raises(MissingDependencyError, match=rf"needs {title}, .*: pip install 'vitexport\[{extra}\]'{hint}$"):
        machine.build(STRONG, library)


def test_an_installed_library_that_cannot_be_imported_is_another_error(machine: Machine, tmp_path: Path) -> None:
    package = tmp_path / "modules" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')", encoding="utf-8"
    )
    machine.monkeypatch.delitem(sys.modules, "tensorrt")
    machine.monkeypatch.syspath_prepend(package.parent)
    with pytest.raises(ToolchainError, match=r"TensorRT is installed but cannot be imported: libnvinfer\.so\.10"):
        machine.build(STRONG, "tensorrt")


# ---- running


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("bindings", [NEW_BINDINGS, OLD_BINDINGS])
def test_images_go_in_and_logits_come_out(generation: str, bindings: tuple[str, ...], machine: Machine) -> None:
    machine.install(generation, bindings)
    backend = machine.open(facts_of(generation))
    # Batches that grow and shrink: device memory is kept and must not be too small.
    for seed, count in enumerate([2, 8, 1, 8]):
        batch = images(count, seed)
        outputs = backend.run(batch)
        assert list(outputs) == [LOGITS]
        assert (outputs[LOGITS].dtype.name, outputs[LOGITS].shape) == ("float32", (count, 5))
        np.testing.assert_allclose(outputs[LOGITS], expected(LOGITS, batch), rtol=1e-6)
    assert backend.description.endswith(f"{GENERATIONS[generation].version}, Fake GPU")


@pytest.mark.parametrize("tensors", [(IMAGE, LOGITS, FEATURE), (FEATURE, LOGITS, IMAGE), (FEATURE, IMAGE)])
def test_all_outputs_of_the_engine_come_out_under_their_names(tensors: tuple[str, ...], machine: Machine) -> None:
    machine.install("10.3")
    machine.conduct.tensors = tensors
    backend = machine.open(facts_of("10.3"))
    for seed, count in enumerate([2, 8, 1]):
        batch = images(count, seed)
        outputs = backend.run(batch)
        assert set(outputs) == set(tensors) - {IMAGE}
        for name, values in outputs.items():
            np.testing.assert_allclose(values, expected(name, batch), rtol=1e-6, atol=1e-6)
    backend.close()
    assert (machine.cuda.blocks, machine.cuda.queues) == ({}, {})


@pytest.mark.parametrize("turn", [np.asfortranarray, lambda batch: batch[::-1], lambda batch: batch.astype(np.float64)])
def test_memory_of_any_layout_is_taken(turn: Callable[[NDArray[Any]], NDArray[Any]], machine: Machine) -> None:
    machine.install("10.3")
    batch = turn(images(3))
    logits = machine.open(facts_of("10.3")).run(batch)[LOGITS]
    np.testing.assert_allclose(logits, expected(LOGITS, np.ascontiguousarray(batch, np.float32)), rtol=1e-6)


def test_results_of_one_run_are_not_changed_by_the_next(machine: Machine) -> None:
    machine.install("10.3")
    backend = machine.open(facts_of("10.3"))
    first = backend.run(images(2, 1))[LOGITS]
    kept = first.copy()
    backend.run(images(2, 2))
    np.testing.assert_array_equal(first, kept)


def test_closing_gives_everything_back(machine: Machine) -> None:
    machine.install("10.3")
    backend = machine.open(facts_of("10.3"))
    assert isinstance(backend, TensorRtBackend)
    for count in (1, 8):
        backend.run(images(count))
    assert len(machine.cuda.blocks) == 2
    backend.close()
    assert (machine.cuda.blocks, machine.cuda.queues) == ({}, {})
    assert not {"_context", "_engine", "_runtime"} & {name for name, value in vars(backend).items() if value is not None}
    backend.close()


def test_closing_after_an_error_of_cuda_frees_what_it_can(machine: Machine) -> None:
    backend = opened(machine)
    for _ in range(2):
        backend.run(images(1))
    machine.cuda.is_broken = True
    backend.close()
    assert (machine.cuda.blocks, machine.cuda.queues, machine.cuda.graphs) == ({}, {}, 0)


def opened(machine: Machine) -> TensorRtBackend:
    machine.install("10.3")
    backend = machine.open(facts_of("10.3"))
    assert isinstance(backend, TensorRtBackend)
    return backend


def test_a_shape_that_comes_twice_is_launched_as_a_graph_from_then_on(machine: Machine) -> None:
    backend = opened(machine)
    for seed in range(4):
        batch = images(2, seed)
        np.testing.assert_allclose(backend.run(batch)[LOGITS], expected(LOGITS, batch), rtol=1e-6)
    assert (machine.cuda.graphs, machine.cuda.launches) == (1, 2)
    # Another shape ends it; the same pictures give the same numbers on either way.
    np.testing.assert_allclose(backend.run(images(3))[LOGITS], expected(LOGITS, images(3)), rtol=1e-6)
    assert (machine.cuda.graphs, machine.cuda.launches) == (0, 2)
    backend.close()
    assert (machine.cuda.graphs, machine.cuda.pinned) == (0, {})


def test_a_graph_can_be_done_without(machine: Machine) -> None:
    backend = opened(machine)
    backend.use_cuda_graph = False
    for seed in range(4):
        backend.run(images(2, seed))
    assert (machine.cuda.graphs, machine.cuda.launches) == (0, 0)


def test_an_engine_that_cannot_be_recorded_runs_without_a_graph_and_says_so(machine: Machine) -> None:
    backend = opened(machine)
    machine.conduct.records = False
    for seed in range(4):
        batch = images(2, seed)
        np.testing.assert_allclose(backend.run(batch)[LOGITS], expected(LOGITS, batch), rtol=1e-6)
    assert machine.cuda.launches == 0
    assert str(backend.graph_refusal).startswith("the engine cannot be recorded (cudaErrorStreamCaptureInvalidated)")


def test_tensorrt_rtx_is_asked_whether_it_can_be_recorded(machine: Machine) -> None:
    machine.install("RTX 1.7")
    machine.conduct.records = False
    backend = machine.open(facts_of("RTX 1.7"))
    assert isinstance(backend, TensorRtBackend)
    for seed in range(3):
        batch = images(2, seed)
        np.testing.assert_allclose(backend.run(batch)[LOGITS], expected(LOGITS, batch), rtol=1e-6)
    assert "takes memory while it runs" in str(backend.graph_refusal)
    assert machine.cuda.launches == 0


def test_no_memory_for_a_graph_is_no_reason_to_fail(machine: Machine) -> None:
    backend = opened(machine)
    machine.cuda.full = True
    for seed in range(4):
        batch = images(2, seed)
        np.testing.assert_allclose(backend.run(batch)[LOGITS], expected(LOGITS, batch), rtol=1e-6)
    assert "cudaErrorMemoryAllocation" in str(backend.graph_refusal)
    backend.close()
    assert (machine.cuda.pinned, machine.cuda.queues) == ({}, {})


def test_the_gpus_time_leaves_the_copies_out(machine: Machine) -> None:
    backend = opened(machine)
    assert isinstance(backend, GpuTimer)
    # Every piece of work takes the fake device a quarter of a millisecond.
    for graph in (False, True):
        backend.use_cuda_graph = graph
        assert [backend.gpu_time(images(2)) for _ in range(3)] == [0.25] * 3
    assert machine.cuda.launches > 0


def test_device_memory_is_reused(machine: Machine) -> None:
    machine.install("10.3")
    backend = machine.open(facts_of("10.3"))
    for _ in range(5):
        backend.run(images(4))
    assert machine.cuda.allocations == 2


def test_a_batch_that_the_engine_does_not_take_is_refused(machine: Machine) -> None:
    machine.install("10.3")
    with pytest.raises(ToolchainError, match=r"does not take input \(9, 3, 4, 4\)"):
        machine.open(facts_of("10.3")).run(images(9))


def test_a_failed_run_is_an_error(machine: Machine) -> None:
    machine.install("10.3")
    machine.conduct.fails = "execute"
    with pytest.raises(ToolchainError, match=r"TensorRT failed on input \(1, 3, 4, 4\)"):
        machine.open(facts_of("10.3")).run(images(1))


def test_a_full_device_is_said_in_cudas_words(machine: Machine) -> None:
    machine.cuda = FakeCuda(memory=100)
    machine.install("10.3")
    with pytest.raises(ToolchainError, match=r"CUDA's cudaMalloc failed: cudaErrorMemoryAllocation \(2\)"):
        machine.open(facts_of("10.3")).run(images(1))


# ---- what does not fit


@pytest.mark.parametrize(
    ("status", "count"),
    [(Status.cudaErrorInsufficientDriver, None), (Status.cudaErrorNoDevice, 0), (Status.cudaSuccess, 0)],
)
def test_a_machine_without_gpu_is_refused_before_tensorrt_is_touched(
    status: Status, count: int | None, machine: Machine
) -> None:
    machine.cuda = FakeCuda(status=status, count=count)
    machine.install("10.3")
    with pytest.raises(
        DeviceError, match=rf"compiled for NVIDIA L4 \(compute capability 8\.9\).*no CUDA GPU \({status.name}\)"
    ):
        machine.open(facts_of("10.3"))


def test_bindings_that_raise_without_a_driver_are_told_as_well(machine: Machine) -> None:
    machine.cuda = FakeCuda()
    machine.cuda.raises = "Failed to dlopen libcuda.so.1"
    machine.install("10.3")
    with pytest.raises(DeviceError, match=r"no CUDA GPU \(Failed to dlopen libcuda\.so\.1\)"):
        machine.open(facts_of("10.3"))


@pytest.mark.parametrize("capabilities", [("8.7",), ("8.0", "9.0")])
def test_another_gpu_is_refused_with_both_sides(capabilities: tuple[str, ...], machine: Machine) -> None:
    machine.install("10.3")
    wanted = " or ".join(capabilities)
    with pytest.raises(DeviceError) as caught:
        machine.open(facts_of("10.3", compute_capabilities=capabilities))
    assert f"NVIDIA L4 (compute capability {wanted})" in str(caught.value)
    assert "Fake GPU (compute capability 8.9)" in str(caught.value)


@pytest.mark.parametrize("capabilities", [(), ("8.9",), ("8.6", "8.9")])
def test_a_gpu_among_those_it_was_built_for_is_taken(capabilities: tuple[str, ...], machine: Machine) -> None:
    machine.install("10.3")
    assert machine.open(facts_of("10.3", compute_capabilities=capabilities)).run(images(1))[LOGITS].shape == (1, 5)


def test_a_two_digit_capability_is_not_taken_for_a_smaller_one(machine: Machine) -> None:
    machine.cuda = FakeCuda(capability=(12, 0))
    machine.install("RTX 1.7")
    machine.open(facts_of("RTX 1.7", compute_capabilities=("12.0",)))
    with pytest.raises(DeviceError, match=r"compute capability 12\.1.*compute capability 12\.0"):
        machine.open(facts_of("RTX 1.7", compute_capabilities=("12.1",)))


@pytest.mark.parametrize(
    ("built", "fits"), [("10.3.0", True), ("10.3.0.26", True), ("10.3.1", False), ("10.13.3", False), ("8.6.2", False)]
)
def test_an_engine_of_another_version_is_refused_with_both(built: str, machine: Machine, *, fits: bool) -> None:
    machine.install("10.3")
    facts = facts_of("10.3", library_version=built)
    if fits:
        machine.open(facts)
        return
    with pytest.raises(DeviceError) as caught:
        machine.open(facts)
    assert f"compiled by TensorRT {built}" in str(caught.value)
    assert "this machine has TensorRT 10.3.0" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "kind"), [("runtime", ToolchainError), ("deserialize", DeviceError), ("context", ToolchainError)]
)
def test_an_engine_that_cannot_be_loaded_is_told_in_the_librarys_words(
    part: str, kind: type[ToolchainError], machine: Machine
) -> None:
    machine.install("10.3")
    machine.conduct.fails = part
    with pytest.raises(kind, match=r"TensorRT 10\.3\.0 cannot .*" + ("" if part == "context" else ": the reason$")):
        machine.open(facts_of("10.3"))


@pytest.mark.parametrize(("library", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")])
def test_absent_cuda_bindings_are_said_with_the_command_that_installs_them(
    library: str, extra: str, machine: Machine
) -> None:
    generation = "RTX 1.7" if extra == "rtx" else "10.3"
    machine.install(generation)
    for name in NEW_BINDINGS:
        machine.monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"needs cuda-bindings, .*: pip install 'vitexport\[{extra}\]'$"):
        machine.open(facts_of(generation))


def test_an_absent_library_on_a_machine_with_gpu_is_said(machine: Machine) -> None:
    machine.install("RTX 1.7")
    with pytest.raises(MissingDependencyError, match=r"engine for NVIDIA L4 needs TensorRT, .*'vitexport\[tensorrt\]'"):
        machine.open(facts_of("10.3"))
