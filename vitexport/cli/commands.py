"""The commands: each parses, makes one library call, prints and returns the exit code of what came back."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitexport import lazy
from vitexport.annotations import Truth, open_validation
from vitexport.apps import KINDS, AppKind, write_app
from vitexport.artifacts import num_names
from vitexport.bundle import Bundle, Manifest, open_bundle
from vitexport.cli.grouped import Grouped, complete_target
from vitexport.cli.images import find_pictures
from vitexport.cli.options import EXPECT_TOP1, PATH, build_options, data_options, output_options
from vitexport.cli.prediction_files import FORMATS, SUFFIXES, write_predictions
from vitexport.cli.progress import native_output_aside
from vitexport.cli.progress import progress as show_progress
from vitexport.cli.wording import as_options
from vitexport.cli.words import build_request
from vitexport.datasets import ImageSet
from vitexport.errors import (
    EXIT_CHECK_FAILED,
    EXIT_OK,
    UsageError,
    missing,
)
from vitexport.pipeline import plan as make_plan
from vitexport.pipeline import run
from vitexport.report import Report
from vitexport.targets import Device, catalogue, resolve
from vitexport.triton import DEFAULT_INSTANCES, DEFAULT_QUEUE_DELAY_US, ServeRequest, write_repository
from vitexport.validate.budget import Budget

if TYPE_CHECKING:
    from vitexport.cli import predictions, show
    from vitexport.validate.bench import Beside
else:
    # rich, and what it shows, take longer to import than a refusal takes.
    predictions, show = lazy.Module("vitexport.cli.predictions"), lazy.Module("vitexport.cli.show")

BUNDLE = click.argument("bundle", type=PATH)
BACKEND = click.option(
    "--backend",
    type=click.Choice(["auto", "tensorrt", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"]),
    default="auto",
    show_default=True,
    metavar="NAME",
    help="tensorrt: the engine; onnxruntime: the ONNX on the CPU; onnxruntime-cuda, onnxruntime-tensorrt: on a GPU; auto: "
    "the first of tensorrt, onnxruntime-cuda and onnxruntime that runs here, saying which.",
)

ENGINE = click.option(
    "--engine", type=PATH, metavar="FILE", help="An engine that was built on this device from the bundle's ONNX."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="vitexport", message="vitexport %(version)s")
def cli() -> None:
    """Export a timm Vision Transformer to a validated bundle that runs on a CPU or a TensorRT device.

    Exit codes: 0 all checks passed or were skipped; 1 built, but a check failed; 2 bad usage; 3 bad input; 4 a missing
    dependency; 5 a toolchain failure; 130 interrupted.
    """


@cli.command(cls=Grouped, short_help="Build and validate a bundle.")
@build_options
@output_options
def build(*, as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> int:
    """Export, quantize, compile and validate MODEL for TARGET, and write the bundle.

    MODEL is a timm name (vit_small_patch16_224, vit_small_patch16_224.augreg_in1k), hf-hub:…, local-dir:… or
    torchvision:vit_b_16.
    """
    request = build_request(arguments)
    with native_output_aside(), show_progress(quiet=quiet or as_json) as progress:
        bundle, report = run(request, progress)
    if as_json:
        show.print_json({"bundle": str(bundle.root), **report.to_json()})
    else:
        show.show_report(report, verbose=verbose)
        click.echo(f"bundle: {bundle.root} ({bundle.size / 2**20:.1f} MiB)")
    return report.exit_code


@cli.command(cls=Grouped, short_help="Tell every problem and step of a build; run nothing.")
@build_options
@output_options
def plan(*, as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> int:
    """Say every problem and every step of a build with the same arguments, and run nothing."""
    request = build_request(arguments)
    with native_output_aside():
        result = make_plan(request)
    if as_json:
        target = result.target.to_json() if result.target else None
        out = str(result.out) if result.out else None
        data = dataclasses.asdict(dataclasses.replace(result, target=None, out=None))
        show.print_json({**data, "target": target, "out": out})
        return result.exit_code
    if not quiet:
        for number, step in enumerate(result.steps, 1):
            click.echo(f"{number}. {as_options(step)}")
        show.show_prediction(result.prediction)
    show.show_findings(result.findings)
    errors = sum(finding.level == "error" for finding in result.findings)
    click.echo(f"{errors} problem{'s' if errors != 1 else ''}" if errors else "no problems found")
    return result.exit_code


@cli.command(short_help="Check an ONNX model against a target's engine rules.")
@click.argument("model", type=PATH, metavar="MODEL.onnx")
@click.option(
    "--target",
    required=True,
    metavar="TARGET",
    shell_complete=complete_target,
    help="A device of the catalogue, or cpu for this machine.",
)
@click.option("--jetpack", metavar="VERSION", help="JetPack release of a Jetson (default: its newest).")
@output_options
def check(*, model: Path, target: str, jetpack: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Say which rules of TARGET's engine MODEL.onnx breaks, whichever tool wrote it; nothing is run or compiled.

    Errors are refused by the engine, or computed otherwise than ONNX says; warnings cost speed or accuracy.
    """
    resolved = resolve(target, jetpack=jetpack)
    try:
        from vitexport import legality
    except ModuleNotFoundError as error:
        raise missing(str(error.name).partition(".")[0], "build", "Checking an ONNX model") from None
    graph = legality.read_graph(model)
    found, census = legality.violations(graph, resolved), legality.census(graph)
    if as_json:
        show.print_json(show.violations_json(found, census, resolved))
    else:
        show.show_violations(found, None if quiet else census, resolved, verbose=verbose)
    return EXIT_CHECK_FAILED if any(violation.level == "error" for violation in found) else EXIT_OK


@cli.command(short_help="List devices, or say what one can do.")
@click.argument("target", required=False, shell_complete=complete_target)
@click.option("--jetpack", metavar="VERSION", help="JetPack release of a Jetson.")
@output_options
def targets(*, target: str | None, jetpack: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """List the catalogue, or say what TARGET can do."""
    if target is None:
        if jetpack is not None:
            raise UsageError("--jetpack goes with a TARGET; give one, for example jetson-orin-nano-8gb.")
        devices = tuple(catalogue().values())
        if as_json:
            show.print_json([_device_json(device) for device in devices])
        else:
            show.show_devices(devices)
        return 0
    resolved = resolve(target, jetpack=jetpack)
    if as_json:
        show.print_json(resolved.to_json())
    else:
        show.show_target(resolved, catalogue()[resolved.id])
    return 0


@cli.command(short_help="Check a bundle on this machine.")
@BUNDLE
@data_options
@EXPECT_TOP1
@BACKEND
@ENGINE
@output_options
def validate(
    *,
    bundle: Path,
    data: Path | None,
    max_drop: float,
    expect_top1: float | None,
    max_map_drop: float,
    max_error_increase: float,
    backend: Any,
    engine: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Check BUNDLE on this machine: files, golden inputs and, with --data, accuracy. Needs no torch."""
    from vitexport.runtime import load
    from vitexport.validate.device import validate_bundle
    from vitexport.validate.plausibility import check_expectation

    budget = Budget(max_drop=max_drop, max_map_drop=max_map_drop, max_error_increase=max_error_increase)
    budget.check()
    check_expectation(expect_top1, labelled=data is not None)
    with show_progress(quiet=quiet or as_json) as progress, load(bundle, backend=backend, engine=engine) as model:
        images = _labelled(model.bundle, data)
        report = validate_bundle(model, images, budget, progress, expect_top1=expect_top1)
    return _finish(report, as_json=as_json, verbose=verbose)


@cli.command(short_help="Build a bundle's engine on the device itself.")
@BUNDLE
@click.option(
    "--workspace", type=click.IntRange(min=1), metavar="MIB", help="Scratch memory (default: half of what is free)."
)
@click.option(
    "--optimization-level", type=click.IntRange(0, 5), metavar="0-5", help="5 searches longest (default: TensorRT's own)."
)
@click.option("--version-compatible", is_flag=True, help="Later versions of TensorRT run it too (can cost speed).")
@click.option("--hardware-compatible", is_flag=True, help="Every GPU from Ampere on runs it (no Jetson; can cost speed).")
@click.option(
    "--dla", type=click.IntRange(min=0), metavar="CORE", help="Use this Deep Learning Accelerator; the GPU does the rest."
)
@click.option("--strip-weights", is_flag=True, help="Leave the weights in the ONNX only; a smaller engine, a slower start.")
@click.option(
    "--localize", is_flag=True, help="Look for the first module that departs, as a failed golden check does by itself."
)
@click.option(
    "--bench-seconds",
    type=click.FloatRange(0, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long it is timed then; 0 for not at all.",
)
@data_options
@EXPECT_TOP1
@output_options
def engine(
    *,
    bundle: Path,
    workspace: int | None,
    optimization_level: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
    dla: int | None,
    strip_weights: bool,
    localize: bool,
    bench_seconds: float,
    data: Path | None,
    max_drop: float,
    expect_top1: float | None,
    max_map_drop: float,
    max_error_increase: float,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Build the engine of BUNDLE with this device's own TensorRT, check it against PyTorch's golden outputs, and keep it.

    It goes into the bundle, beside those of other machines, under what it was built on; predict, validate and bench then
    take it by themselves. An engine that does not compute what PyTorch computed is not kept; one that fails only
    fused_attention or int8_layers is slower than it could be, and kept. Needs no torch.
    """
    from vitexport.device import EngineRequest, build_here, open_for_engine
    from vitexport.validate.plausibility import check_expectation

    budget = Budget(max_drop=max_drop, max_map_drop=max_map_drop, max_error_increase=max_error_increase)
    budget.check()
    check_expectation(expect_top1, labelled=data is not None)
    opened = open_for_engine(bundle)
    images = _labelled(opened, data)
    request = EngineRequest(
        workspace_mib=workspace,
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        dla_core=dla,
        strip_weights=strip_weights,
        budget=budget,
        expect_top1=expect_top1,
        localize=localize,
        bench_seconds=bench_seconds or None,
    )
    with native_output_aside(), show_progress(quiet=quiet or as_json) as progress:
        beside = functools.partial(_pytorch, gpu=True)
        folder, report = build_here(opened, request, images, progress, pytorch=beside)
    if as_json:
        show.print_json({"engine": str(folder) if folder else None, **report.to_json()})
    else:
        show.show_report(report, verbose=verbose)
        if folder is not None:
            click.echo(f"engine: {folder}")
    return report.exit_code


@cli.command(short_help="Say what TensorRT made of a network's blocks.")
@click.argument("layers_json", type=PATH, metavar="LAYERS.json")
@click.option("--bundle", type=PATH, metavar="BUNDLE", help="Check the engine against this bundle's INT8 recipe.")
@output_options
def layers(*, layers_json: Path, bundle: Path | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Say, block by block, which attentions are fused, what each linear layer is multiplied in, and what is reformatted.

    LAYERS.json is what trtexec --exportLayerInfo --profilingVerbosity=detailed writes of any engine, or layers.json beside
    an engine that vitexport engine built; no TensorRT is needed to read it.
    """
    from vitexport.device import inspect_file

    return _finish(inspect_file(layers_json, bundle), as_json=as_json, verbose=verbose)


@cli.command(short_help="Time a bundle on this machine.")
@BUNDLE
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Images per call (default: the bundle's own).")
@click.option("--sweep", is_flag=True, help="Every batch of 1, 2, 4 … that the bundle takes.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="How long each batch is timed."
)
@click.option(
    "--warm-up",
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    help="Most time to wait until it runs steadily (default: twice --seconds).",
)
@click.option("--pytorch/--no-pytorch", default=True, show_default=True, help="PyTorch beside it, where it is installed.")
@click.option("-o", "--out", type=PATH, metavar="FILE.json", help="Write what was measured there, for compare.")
@BACKEND
@ENGINE
@output_options
def bench(
    *,
    bundle: Path,
    batch: int | None,
    sweep: bool,
    seconds: float,
    warm_up: float | None,
    pytorch: bool,
    out: Path | None,
    backend: Any,
    engine: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Time BUNDLE on this machine: latency of one call, with clocks, power mode and temperature beside it.

    GPU is the time on the GPU alone; run is from the preprocessed tensor to the outputs, both on the host; end to end
    begins with pixels. Nothing is judged.
    """
    from vitexport.runtime import load
    from vitexport.validate.bench import BenchRequest, Beside, bench_bundle, on_gpu, write_bench

    if out is not None:
        _check_file(out, (".json",), "what was measured is written as JSON")
    request = BenchRequest(batch=batch, sweep=sweep, seconds=seconds, warm_up=warm_up)
    with (
        native_output_aside(),
        show_progress(quiet=quiet or as_json) as progress,
        load(bundle, backend=backend, engine=engine) as model,
    ):
        request.batches(model.manifest.batch)
        skipped = Beside(skipped="not asked for (--no-pytorch)")
        beside = _pytorch(model.manifest, gpu=on_gpu(model.backend)) if pytorch else skipped
        report = bench_bundle(model, request, pytorch=beside, progress=progress)
    if out is not None:
        write_bench(out, report)
    return _finish(report, as_json=as_json, verbose=verbose)


def _pytorch(manifest: Manifest, *, gpu: bool) -> Beside:
    """What PyTorch can be timed with, or why it cannot."""
    from vitexport.validate.bench import Beside

    try:
        from vitexport.eager import pytorch_beside
    except ModuleNotFoundError as error:
        return Beside(skipped=f"{str(error.name).partition('.')[0]} is not installed here")
    except (ImportError, RuntimeError, OSError) as error:
        return Beside(skipped=f"PyTorch or timm is installed but cannot be imported: {error}")
    return pytorch_beside(manifest, gpu=gpu)


@cli.command(short_help="Hold two measurements side by side.")
@click.argument("first", type=PATH, metavar="A")
@click.argument("second", type=PATH, metavar="B")
@output_options
def compare(*, first: Path, second: Path, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Put the latencies of A and B, of two devices or two builds, side by side, and explain what makes them not comparable.

    Each is a file of bench -o, the report.json of an engine in a bundle, or a bundle. The exit code does not depend on
    what is found.
    """
    from vitexport.validate.compare import compare as hold_together

    comparison = hold_together(first, second)
    if as_json:
        show.print_json(comparison.to_json())
    else:
        show.show_comparison(comparison)
    return EXIT_OK


@cli.command(short_help="Add a bundle to a Triton model repository.")
@click.argument("bundles", nargs=-1, required=True, type=PATH, metavar="BUNDLE...")
@click.option("-o", "--out", type=PATH, required=True, metavar="REPOSITORY", help="The repository; made if it is not there.")
@click.option("--name", metavar="NAME", help="Of the model there (default: the model's own).")
@click.option(
    "--instances", type=int, metavar="N", help=f"Copies on the CPU, or on each GPU (default: {DEFAULT_INSTANCES})."
)
@click.option(
    "--queue-delay",
    type=int,
    metavar="US",
    help=f"Microseconds that a request may wait to share a batch (default: {DEFAULT_QUEUE_DELAY_US}).",
)
@output_options
def triton(
    *,
    bundles: tuple[Path, ...],
    out: Path,
    name: str | None,
    instances: int | None,
    queue_delay: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Add BUNDLE to a model repository of the Triton Inference Server, as a new version.

    The model takes the picture itself, or stands behind one that preprocesses it. Several bundles are one model for several
    GPUs: the engines that vitexport engine built there become plans by compute capability. The configuration of a model that
    is there already is its operator's: it stays as it is.
    """
    request = ServeRequest(name=name, instances=instances, queue_delay_us=queue_delay)
    added = write_repository([open_bundle(bundle) for bundle in bundles], out, request)
    return _written("repository", out, "added", added, as_json=as_json, quiet=quiet)


@cli.command(short_help="Write a project that runs a bundle in an application.")
@BUNDLE
@click.option("--for", "kind", type=click.Choice(KINDS), required=True, help="What the project is.")
@click.option("-o", "--out", type=PATH, required=True, metavar="DIR", help="The project's folder; new, or empty.")
@output_options
def app(*, bundle: Path, kind: AppKind, out: Path, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Write a small, complete project that classifies pictures with BUNDLE's model, without Python.

    The model takes the picture itself, so BUNDLE is one for web or android-arm64, or was built with --embed-preprocess.
    """
    files = write_app(open_bundle(bundle), kind, out)
    return _written("project", out, "files", files, as_json=as_json, quiet=quiet)


def _written(what: str, out: Path, parts: str, names: Sequence[str], *, as_json: bool, quiet: bool) -> int:
    """Say which files came to be in the folder `out`."""
    if as_json:
        show.print_json({what: str(out), parts: list(names)})
    elif not quiet:
        click.echo(f"{out}: {', '.join(names)}")
    return EXIT_OK


@cli.command(short_help="Verify a bundle and show what is in it.")
@BUNDLE
@output_options
def inspect(*, bundle: Path, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Verify BUNDLE and say what is in it; loads no engine library."""
    opened = open_bundle(bundle)
    if as_json:
        show.print_json({"manifest": opened.manifest.to_json(), "report": opened.report().to_json()})
    else:
        show.show_bundle(opened, verbose=verbose)
    return 0


@cli.command(short_help="Run images through a bundle.")
@BUNDLE
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), metavar="K", help="Labels per image, likeliest first (default: 5).")
@click.option(
    "--threshold",
    type=float,
    metavar="PROBABILITY",
    help="Multi-label: show labels from here on (default: the bundle's own, 0.5 unless built with another).",
)
@click.option(
    "-o",
    "--out",
    type=PATH,
    metavar="FILE",
    help="Write there: every output as NumPy arrays by name (.npz), or the predictions as a table (.csv) or one JSON object "
    "a line (.jsonl).",
)
@BACKEND
@ENGINE
@output_options
def predict(
    *,
    bundle: Path,
    images: tuple[str, ...],
    top: int | None,
    threshold: float | None,
    out: Path | None,
    backend: Any,
    engine: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run each IMAGE through BUNDLE: its likeliest classes, its labels or values, or what else the model computes.

    IMAGE is a file, a folder of images, or a quoted pattern such as 'photos/**/*.jpg'.
    """
    from vitexport.runtime import load

    if out is not None:
        _check_file(out, SUFFIXES, FORMATS)
    pictures = find_pictures(images)
    with native_output_aside(), load(bundle, backend=backend, engine=engine) as model:
        predictions.check_options(model.manifest.task, top=top, threshold=threshold)
        if not quiet:
            why = "" if model.fallback is None else f": {model.fallback}"
            click.echo(f"note: running on {model.backend.description}{why}", err=True)
        prediction = model.predict(pictures)
    rows = predictions.predictions_json(pictures, prediction, top=top, threshold=threshold)
    if out is not None:
        write_predictions(out, rows, prediction.outputs)
    if as_json:
        show.print_json(rows)
    else:
        predictions.show_predictions(pictures, prediction, top=top, threshold=threshold)
    return 0


def _check_file(path: Path, suffixes: Sequence[str], why: str) -> None:
    """Refuse before the work what cannot be written after it."""
    if path.suffix not in suffixes:
        raise UsageError(f"--out {path}: {why}; give a name that ends in {' or '.join(suffixes)}.")
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--out {path} cannot be written: it is a folder, or its folder does not exist or is read-only.")


def _labelled(bundle: Bundle, data: Path | None) -> ImageSet | None:
    if data is None:
        return None
    manifest = bundle.manifest
    count = num_names(manifest.outputs)
    if count is None:
        raise UsageError(f"--data: bundle {bundle.root} names no classes, so there is no accuracy; leave --data out.")
    truth = Truth(
        task=manifest.task,
        names=manifest.labels,
        synsets=manifest.synsets,
        count=count,
        channels=manifest.preprocess.channels,
    )
    return open_validation(data, truth)


def _finish(report: Report, *, as_json: bool, verbose: bool) -> int:
    if as_json:
        show.print_json(report.to_json())
    else:
        show.show_report(report, verbose=verbose)
    return report.exit_code


def _device_json(device: Device) -> dict[str, Any]:
    return dataclasses.asdict(device)
