"""Engines that compute wrong, on machines that are fakes: the first module that does is named, and none where none does."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Built
from devices import Device

from vitexport.artifacts import EngineRecipe, Outputs
from vitexport.bundle import Bundle, hash_files, open_bundle, write_manifest
from vitexport.cli.commands import cli
from vitexport.errors import BundleError
from vitexport.report import Check
from vitexport.runtime.backends.tensorrt_build import BuilderOptions, build_plan, marked_name
from vitexport.runtime.checkpoints import (
    FILES,
    INDEX,
    MOST_BYTES,
    VALUES,
    Checkpoint,
    Checkpoints,
    lasts,
    read_checkpoints,
    sample,
    samples_of,
)
from vitexport.validate.localize import localize

# A generation for each way in which a network's outputs are marked.
SEARCHED = ("8.5", "8.6", "10.3", "11.4")


# ---- on a device


@pytest.mark.parametrize("generation", SEARCHED)
def test_the_first_module_that_computes_wrong_is_named(generation: str, make_device: Callable[[str], Device]) -> None:
    device = make_device(generation)
    device.conduct.wrong_from = "blocks.1.mlp.fc1/Add"
    folder, report = device.build()
    assert folder is None
    [check] = [check for check in report.checks if check.name == "localize"]
    assert check.status == "failed"
    assert check.message.startswith("blocks.1.mlp.fc1 is the first module that departs (blocks.1.")
    assert check.measured == pytest.approx(6.0, abs=0.5)  # half as large again
    assert check.limit is not None
    assert check.limit > 20
    # As it was built, with the outputs of the blocks, and with those of one block's modules.
    assert len(device.conduct.built) == 3
    assert not (device.root / "engines").exists()


@pytest.mark.parametrize("generation", SEARCHED)
def test_of_a_right_engine_nothing_is_named(generation: str, make_device: Callable[[str], Device]) -> None:
    device = make_device(generation)
    folder, report = device.build(search=True)
    assert folder is not None
    assert report.count("failed") == 0
    [check] = [check for check in report.checks if check.name == "localize"]
    assert check.status == "passed"
    modules = 6 if generation in {"8.5", "10.3"} else 5
    assert check.message.startswith(f"the outputs of {modules} blocks and other modules are as near to the float graph's")
    assert sorted(path.name for path in folder.iterdir()) == [
        "engine.json",
        "layers.json",
        "model.engine",
        "report.json",
        "timing.cache",
    ]


def test_it_is_not_searched_for_unasked(orin: Device) -> None:
    _, report = orin.build()
    assert [check.name for check in report.checks] == [
        *("engine", "golden", "preprocessing", "decoding", "accuracy"),
        *("fused_attention", "int8_layers"),
    ]
    assert len(orin.conduct.built) == 1


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("patch_embed.proj/Conv", "patch_embed.proj is the first module that departs; patch_embed.proj/Conv is at 6.0 dB"),
        ("blocks.0/Add.2", "blocks.0 is the first module that departs (blocks.0.mlp.fc2 before it does not)"),
        ("norm/LayerNormalization", "norm is the first module that departs (blocks.2 before it does not)"),
    ],
)
def test_modules_in_and_outside_of_blocks(orin: Device, tensor: str, named: str) -> None:
    orin.conduct.wrong_from = tensor
    check = orin.located()
    assert check.status == "failed"
    assert check.message.startswith(named)


def test_a_fault_that_marked_outputs_undo_is_told_as_such(orin: Device) -> None:
    orin.conduct.wrong_from, orin.conduct.heals = "blocks.1.attn.proj/Add", True
    check = orin.located()
    assert check.status == "failed"
    assert check.message.startswith("no module up to norm departs when the blocks' outputs leave the engine too")


def test_nan_has_a_place_too(orin: Device) -> None:
    orin.conduct.noise = float("nan")
    check = orin.located()
    assert check.message.startswith(
        "patch_embed.proj is the first module that departs; patch_embed.proj/Conv holds NaN or inf"
    )


def test_the_command_line_asks_for_it(orin: Device, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engine", str(orin.root), "--localize"], standalone_mode=False) == 0
    assert re.search(r"passed +localize +the outputs of 6 blocks", capsys.readouterr().out)


def test_the_real_compiler_takes_marked_tensors_and_says_what_it_computes(jetson_bundle: Built) -> None:
    recipe = EngineRecipe(
        typing="strong", flags=(), fp32_layers=(), profile=None, compute_capabilities=("8.9",), trtexec="trtexec"
    )
    options = BuilderOptions(marked=("blocks.1/Add.2", "a tensor that is not there"))
    engine = build_plan(jetson_bundle.root / "model.onnx", recipe, "tensorrt-rtx", options).engine
    # TensorRT-RTX compiles without a GPU and runs on one only, but the names of what will leave are in the plan as they are.
    assert marked_name("blocks.1/Add.2").encode() in engine
    assert b"a tensor that is not there" not in engine
    assert b"[ONNX Layer: blocks.1.mlp.fc2/MatMul" in engine


# ---- what the engine is made of


def test_what_tensorrt_made_of_the_blocks_is_in_the_report_and_beside_the_engine(orin: Device) -> None:
    folder, report = orin.build()
    assert folder is not None
    assert report.measurements["summary"] == "3/3 attentions fused; all 12 linear layers in INT8; 4 reformats"
    assert json.loads((folder / "layers.json").read_text(encoding="utf-8"))["Bindings"] == ["image", "logits"]
    assert cli.main(["layers", str(folder / "layers.json"), "--bundle", str(orin.root)], standalone_mode=False) == 0


def test_an_engine_that_is_only_slow_is_kept_and_its_check_fails(orin: Device) -> None:
    orin.conduct.unfused, orin.conduct.wide = ("blocks.2.attn",), ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2")
    folder, report = orin.build()
    assert folder is not None
    assert {check.name for check in report.checks if check.status == "failed"} == {"fused_attention", "int8_layers"}
    assert report.exit_code == 1


@pytest.mark.parametrize(("says", "reason"), [("{", "not what TensorRT's engine inspector writes"), ("", "JSONDecodeError")])
def test_an_inspector_that_says_something_else_stops_nothing(orin: Device, says: str, reason: str) -> None:
    orin.conduct.inspector_says = says
    folder, report = orin.build()
    assert folder is not None
    [check] = [check for check in report.checks if check.name == "fused_attention"]
    assert check.status == "skipped"
    assert reason in check.message


# ---- what the bundle keeps


def test_a_bundle_for_an_engine_keeps_samples_of_its_modules(jetson_bundle: Built, cpu_bundle: Built) -> None:
    kept = read_checkpoints(jetson_bundle.bundle)
    assert kept is not None
    assert kept.values.shape[:2] == (2, len(kept.items))
    assert kept.values.nbytes <= MOST_BYTES
    modules = [item.module for item in kept.items]
    assert len(set(modules)) == len(modules)
    assert {"patch_embed.proj", "blocks.0", "blocks.1.mlp.fc2", "blocks.2", "norm"} <= set(modules)
    assert all(item.built_db >= 10 for item in kept.items)
    assert [item.module for item in lasts(kept.items)] == [
        "patch_embed.proj",
        "patch_embed",
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "norm",
    ]
    assert jetson_bundle.bundle.manifest.files.keys() >= set(FILES.values())
    assert read_checkpoints(cpu_bundle.bundle) is None


def test_of_every_tensor_the_same_evenly_spread_elements_are_kept() -> None:
    values = np.arange(2 * 65 * 128, dtype=np.float16).reshape(2, 65, 128) % 1009
    found = sample(values, 300)
    assert found.dtype == np.float32
    assert np.array_equal(found, sample(values.reshape(2, -1), 300))
    places = sample(np.arange(65 * 128).reshape(1, -1), 300)[0]
    assert np.histogram(places, 10, (0, 65 * 128))[0].min() > 25
    assert len(set(places % 128)) > 100
    # A tensor of few elements gives some of them more than once.
    assert sample(np.ones((3, 5)), 64).shape == (3, 64)


@pytest.mark.parametrize(("count", "samples"), [(1, 2048), (24, 2048), (300, 873), (100_000, 64)])
def test_more_tensors_have_fewer_samples(count: int, samples: int) -> None:
    assert samples_of(count) == samples


def without_checkpoints(bundle: Bundle) -> None:
    """As a bundle was before there were any."""
    manifest = bundle.manifest
    for path in FILES.values():
        (bundle.root / path).unlink()
    artifacts = {role: path for role, path in manifest.artifacts.items() if role not in FILES}
    write_manifest(bundle.root, dataclasses.replace(manifest, artifacts=artifacts, files=hash_files(bundle.root)))


def test_a_bundle_without_them_says_so(orin: Device) -> None:
    without_checkpoints(open_bundle(orin.root))
    check = orin.located(search=True)
    assert (check.status, check.message) == (
        "skipped",
        "the bundle keeps no outputs of its modules; build it again with this vitexport",
    )


@pytest.mark.parametrize(
    ("role", "data", "reason"),
    [
        (INDEX, b"{}", "cannot be read: 'checkpoints'"),
        (INDEX, b'{"checkpoints": [{"tensor": "a", "module": "b", "built_db": "c"}]}', "cannot be read"),
        (INDEX, b'{"checkpoints": []}', r"says float32 \[images, 0, samples\]"),
        (VALUES, b"\x93NUMPY", "cannot be read"),
    ],
)
def test_damaged_checkpoints_are_refused(jetson_bundle: Built, tmp_path: Path, role: str, data: bytes, reason: str) -> None:
    shutil.copytree(jetson_bundle.root / "golden", tmp_path / "golden")
    (tmp_path / FILES[role]).write_bytes(data)
    bundle = Bundle(root=tmp_path, manifest=jetson_bundle.bundle.manifest)
    with pytest.raises(BundleError, match=reason):
        read_checkpoints(bundle)


# ---- the search itself

ITEMS = tuple(
    Checkpoint(tensor=f"{module}/Add", module=module, built_db=40.0)
    for module in ("stem", "blocks.0.fc1", "blocks.0.fc2", "blocks.0", "blocks.1.fc1", "blocks.1", "head")
)


def searched(wrong: Sequence[str], *, heals: bool = False, missing: Sequence[str] = ()) -> Check:
    """The search in an engine whose outputs of the modules in `wrong` are half too large; if it heals, only at first."""
    right = dict(zip(ITEMS, np.random.default_rng(0).normal(size=(len(ITEMS), 2, 64)).astype(np.float32), strict=True))
    runs: list[Sequence[str]] = []

    def engine(tensors: Sequence[str]) -> Outputs:
        runs.append(tensors)
        return {
            item.tensor: values * (1.5 if item.module in wrong and not (heals and len(runs) > 1) else 1.0)
            for item, values in right.items()
            if item.tensor in tensors and item.module not in missing
        }

    values = np.stack([sample(values, 64) for values in right.values()], axis=1)
    return localize(Checkpoints(items=ITEMS, values=values), engine, is_wrong=True)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["blocks.0.fc2", "blocks.0", "blocks.1.fc1", "blocks.1", "head"], "blocks.0.fc2 is the first"),
        (["blocks.1", "head"], "blocks.1 is the first module that departs (blocks.1.fc1 before it does not)"),
        (["stem", "blocks.0.fc1", "blocks.0"], "stem is the first module that departs;"),
        (["head"], "head is the first module that departs (blocks.1 before"),
        # What is wrong in the middle of a block that ends right is not looked for.
        (["blocks.0.fc1"], "no module up to head departs"),
    ],
)
def test_the_first_is_found(wrong: list[str], named: str) -> None:
    check = searched(wrong)
    assert check.status == "failed"
    assert check.message.startswith(named)


def test_a_block_whose_modules_are_right_as_soon_as_they_are_outputs() -> None:
    check = searched(["blocks.1"], heals=True)
    assert check.message.startswith("blocks.1 is the first block that departs, but none of its modules does once their")
    assert check.measured == pytest.approx(6.0, abs=0.1)


def test_what_the_engine_does_not_have_is_passed_over() -> None:
    assert searched(["blocks.0.fc2", "blocks.0"], missing=["blocks.0.fc2"]).message.startswith(
        "blocks.0 is the first module"
    )
