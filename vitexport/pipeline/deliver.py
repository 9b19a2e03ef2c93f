"""Make what the target's runtime loads of the graph that ships, and check what of it runs here."""

from __future__ import annotations

from vitexport.artifacts import Engine, OnnxModel
from vitexport.errors import DeviceError, MissingDependencyError
from vitexport.pipeline.candidates import Candidate, Judge
from vitexport.report import Check, skipped
from vitexport.runtime.backends import EngineFacts, open_engine
from vitexport.runtime.model import run_in_batches
from vitexport.validate.numerics import golden


def deliver(judge: Judge, shipped: OnnxModel, chosen: Candidate) -> tuple[Engine | None, list[Check]]:
    """The engine, or how the device makes it, with its checks; None where the runtime loads the graph itself."""
    stack, session = judge.stack, judge.session
    if stack.delivering is None:
        return None, []
    session.progress.begin(stack.delivering)
    with session.watch.stage("engine"):
        engine = stack.deliver(shipped, chosen.variant, judge.source.preprocess, session.folder)
    return engine, [] if engine is None else _checks(judge, engine, chosen)


def _checks(judge: Judge, engine: Engine, chosen: Candidate) -> list[Check]:
    """Whether the engine was compiled, and what it computes where it can run here."""
    name = judge.stack.target.name
    if engine.path is None:
        reason = engine.skipped or ""
        return [skipped("engine", reason), skipped("latency", f"there is no engine yet; measure it on {name}")]
    size = engine.path.stat().st_size
    built = Check(
        name="engine",
        status="passed",
        message=f"compiled for compute capability {', '.join(engine.recipe.compute_capabilities)} by TensorRT-RTX "
        f"{engine.library_version}, {size / 2**20:.1f} MiB",
    )
    try:
        backend = open_engine(engine.path, engine_facts(engine, name))
    except (DeviceError, MissingDependencyError) as error:
        return [
            built,
            skipped("engine_output", str(error)),
            skipped("latency", f"the engine cannot run here; {name} can"),
        ]
    reference = judge.reference
    check, _ = golden(
        reference.golden_outputs,
        run_in_batches(backend, reference.golden_images, judge.batch),
        chosen.golden,
        specs=judge.source.outputs,
        name="engine_output",
        where=backend.description,
        reading=judge.reading,
    )
    return [built, check, skipped("latency", "time the engine with vitexport bench")]


def engine_facts(engine: Engine, target_name: str) -> EngineFacts:
    """What has to fit before `engine` may be loaded."""
    return EngineFacts(
        library=engine.library,
        library_version=engine.library_version,
        compute_capabilities=engine.recipe.compute_capabilities,
        target=target_name,
    )
