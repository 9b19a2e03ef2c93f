"""Repositories that ``vitexport triton`` writes, held against Triton's own schema; the engines in them are fakes."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Built
from google.protobuf import text_format
from PIL import Image

from vitexport.artifacts import BatchRange
from vitexport.bundle import Bundle, sync
from vitexport.errors import InputError, UsageError
from vitexport.preprocess import normalize
from vitexport.runtime import engines
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.runtime.engines import BuiltHere, Fingerprint
from vitexport.triton import ServeRequest, write_repository
from vitexport.triton import repository as writing

SPEC = importlib.util.find_spec("tritonclient")
pytestmark = pytest.mark.skipif(SPEC is None, reason="tritonclient is missing; source scripts/environment installs it")
DEFAULT = ServeRequest(name="digits")


def schema() -> Any:
    """Triton's protobuf schema, out of tritonclient; the package itself would import gRPC."""
    assert SPEC is not None
    assert SPEC.submodule_search_locations is not None
    path = Path(SPEC.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODEL_CONFIG = schema() if SPEC is not None else None


def config(repository: Path, name: str = "digits") -> Any:
    """The configuration, as Triton parses it: an unknown field or word is an error."""
    assert MODEL_CONFIG is not None
    text = (repository / name / "config.pbtxt").read_text(encoding="utf-8")
    parsed = text_format.Parse(text, MODEL_CONFIG.ModelConfig())
    assert parsed.name == name
    return parsed


def dynamic(built: Built, batch: str = "1:4:8") -> Bundle:
    manifest = dataclasses.replace(built.bundle.manifest, batch=BatchRange.parse(batch))
    return dataclasses.replace(built.bundle, manifest=manifest)


def test_a_model_that_takes_the_picture_is_one_model(web_bundle: Built, tmp_path: Path) -> None:
    assert write_repository([web_bundle.bundle], tmp_path / "models", DEFAULT) == ("digits/1",)
    parsed = config(tmp_path / "models")
    assert (parsed.backend, parsed.max_batch_size) == ("onnxruntime", 0)
    assert [(entry.name, list(entry.dims)) for entry in parsed.input] == [("image", [1, -1, -1, 3])]
    assert [(entry.name, list(entry.dims), entry.label_filename) for entry in parsed.output] == [
        ("logits", [1, 10], "labels.txt"),
        ("probabilities", [1, 10], "labels.txt"),
        ("top_indices", [1, 5], ""),
    ]
    folder = tmp_path / "models" / "digits"
    assert (folder / "labels.txt").read_text(encoding="utf-8").split() == list("0123456789")
    warm_up = parsed.model_warmup[0].inputs["image"]
    golden = np.fromfile(folder / "warmup" / warm_up.input_data_file, np.uint8).reshape(tuple(warm_up.dims))
    pixels, _ = web_bundle.bundle.golden()
    np.testing.assert_array_equal(golden, pixels[:1])
    seen = OnnxRuntimeBackend(folder / "1" / "model.onnx").run(golden)
    assert {name: list(values.shape) for name, values in seen.items()} == {
        entry.name: list(entry.dims) for entry in parsed.output
    }
    (client,) = (tmp_path / "models").glob("client-*.py")
    serving = (tmp_path / "models" / "SERVING-digits.md").read_text(encoding="utf-8")
    assert "perf_analyzer -m digits" in serving
    assert "--shape image:1,480,640,3" in serving
    assert "@@" not in client.read_text(encoding="utf-8") + serving


def test_a_batch_range_becomes_dynamic_batching(web_bundle: Built, tmp_path: Path) -> None:
    write_repository([dynamic(web_bundle)], tmp_path, dataclasses.replace(DEFAULT, instances=2, queue_delay_us=750))
    parsed = config(tmp_path)
    assert parsed.max_batch_size == 8
    assert list(parsed.dynamic_batching.preferred_batch_size) == [4]
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 750
    assert list(parsed.input[0].dims) == [-1, -1, 3]
    assert parsed.instance_group[0].count == 2
    assert parsed.model_warmup[0].batch_size == 4


def test_versions_are_added_and_what_is_there_stays(web_bundle: Built, tmp_path: Path) -> None:
    write_repository([web_bundle.bundle], tmp_path, DEFAULT)
    tuned = (tmp_path / "digits" / "config.pbtxt").read_text(encoding="utf-8").replace("count: 1", "count: 3")
    (tmp_path / "digits" / "config.pbtxt").write_text(tuned, encoding="utf-8")
    (tmp_path / "digits" / "1" / "model.onnx").write_bytes(b"older")
    assert write_repository([web_bundle.bundle], tmp_path, DEFAULT) == ("digits/2",)
    assert (tmp_path / "digits" / "1" / "model.onnx").read_bytes() == b"older"
    assert (tmp_path / "digits" / "config.pbtxt").read_text(encoding="utf-8") == tuned
    assert not list((tmp_path / "digits").glob(".*"))


def test_another_model_of_that_name_is_refused(web_bundle: Built, several_bundle: Built, tmp_path: Path) -> None:
    write_repository([web_bundle.bundle], tmp_path, DEFAULT)
    with pytest.raises(InputError, match="other inputs, outputs or batches"):
        write_repository([several_bundle.bundle], tmp_path, DEFAULT)
    labels = tmp_path / "digits" / "labels.txt"
    labels.write_text("other\n", encoding="utf-8")
    with pytest.raises(InputError, match="other names"):
        write_repository([web_bundle.bundle], tmp_path, DEFAULT)
    (tmp_path / "strange" / "1").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no config.pbtxt"):
        write_repository([web_bundle.bundle], tmp_path, ServeRequest(name="strange"))
    assert sorted(path.name for path in (tmp_path / "digits").iterdir() if path.is_dir()) == ["1", "warmup"]


def test_without_such_a_model_the_preprocessing_stands_before_it(l4_bundle: Built, tmp_path: Path) -> None:
    added = write_repository([l4_bundle.bundle], tmp_path, DEFAULT)
    assert added == ("digits-preprocess/1", "digits-engine/1", "digits/1")
    first, second, whole = (config(tmp_path, name) for name in ("digits-preprocess", "digits-engine", "digits"))
    assert whole.platform == "ensemble"
    steps = whole.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["digits-preprocess", "digits-engine"]
    assert dict(steps[0].output_map) == {"pixels": "pixels"}
    assert dict(steps[1].input_map) == {"image": "pixels"}
    assert [list(entry.dims) for entry in first.output] == [list(entry.dims) for entry in second.input] == [[3, 32, 32]]
    assert (first.max_batch_size, second.max_batch_size, whole.max_batch_size) == (8, 8, 8)
    (accelerator,) = second.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": l4_bundle.bundle.manifest.precision.upper(),
        "trt_profile_min_shapes": "image:1x3x32x32",
        "trt_profile_opt_shapes": "image:4x3x32x32",
        "trt_profile_max_shapes": "image:8x3x32x32",
    }
    assert second.instance_group[0].kind == second.instance_group[0].KIND_GPU
    spec = l4_bundle.bundle.manifest.preprocess
    golden = np.fromfile(tmp_path / "digits-preprocess" / "warmup" / "golden", np.uint8).reshape(32, 32, 3)
    pixels = OnnxRuntimeBackend(tmp_path / "digits-preprocess" / "1" / "model.onnx").tensors(golden[None])[0]
    np.testing.assert_allclose(pixels[0], normalize(golden, spec), atol=1e-6)
    warmed = np.fromfile(tmp_path / "digits-engine" / "warmup" / "golden", np.float32)
    np.testing.assert_array_equal(warmed, normalize(golden, spec).ravel())


def test_engines_of_several_gpus_become_plans(jetson_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(capability: str) -> BuiltHere:
        path = tmp_path / f"{capability}.engine"
        path.write_bytes(capability.encode())
        where = Fingerprint(
            library="tensorrt",
            version="10.3.0",
            compute_capability=capability,
            gpu="gpu-8",
            system="linux-x86_64",
            driver="12.8",
        )
        return BuiltHere(path=path, fingerprint=where)

    monkeypatch.setattr(engines, "every", lambda _: (built("9.0"), built("8.7")))
    write_repository([jetson_bundle.bundle], tmp_path / "models", DEFAULT)
    parsed = config(tmp_path / "models", "digits-engine")
    assert parsed.platform == "tensorrt_plan"
    assert dict(parsed.cc_model_filenames) == {"8.7": "model.sm8.7.plan", "9.0": "model.sm9.0.plan"}
    assert parsed.default_model_filename == "model.sm8.7.plan"
    version = tmp_path / "models" / "digits-engine" / "1"
    assert {path.name: path.read_bytes() for path in version.iterdir()} == {
        "model.sm8.7.plan": b"8.7",
        "model.sm9.0.plan": b"9.0",
    }
    with pytest.raises(UsageError, match=r"Two engines are for compute capability 9.0"):
        write_repository([jetson_bundle.bundle, jetson_bundle.bundle], tmp_path / "models", DEFAULT)


def test_what_is_no_one_model_is_refused(web_bundle: Built, embedding_bundle: Built, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not of one model"):
        write_repository([web_bundle.bundle, embedding_bundle.bundle], tmp_path, DEFAULT)
    with pytest.raises(UsageError, match="hold no engine"):
        write_repository([web_bundle.bundle, web_bundle.bundle], tmp_path, DEFAULT)
    with pytest.raises(UsageError, match="is not a model name"):
        write_repository([web_bundle.bundle], tmp_path, ServeRequest(name="../digits"))
    with pytest.raises(UsageError, match="`instances`"):
        write_repository([web_bundle.bundle], tmp_path, ServeRequest(instances=0))
    assert not list(tmp_path.iterdir())


def everything(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, group and content of all that lies below `root`."""
    return {
        path.relative_to(root).as_posix(): (
            path.stat().st_mode,
            path.stat().st_gid,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in root.rglob("*")
    }


@pytest.fixture(params=[False, True], ids=["beside", "within"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether what is made beside the repository can be renamed into it, as a mounted volume forbids."""
    if request.param:
        monkeypatch.setattr(writing, "_renames", lambda *_: False)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("moment", [("_write", 3), ("_move_in", 3), ("_write_page", 1), ("_write_page", 2)])
def test_what_is_cut_short_leaves_the_repository_as_it_was(
    cpu_bundle: Built,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    moment: tuple[str, int],
    *,
    there: bool,
) -> None:
    repository, (step, call) = tmp_path / "new" / "models", moment
    if there:
        write_repository([cpu_bundle.bundle], repository, DEFAULT)
    before, whole, calls = everything(tmp_path), getattr(writing, step), []

    def fails(*words: Any) -> Any:
        calls.append(words)
        result = whole(*words)
        if len(calls) == call:
            raise error
        return result

    with monkeypatch.context() as patch:
        patch.setattr(writing, step, fails)
        with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
            write_repository([cpu_bundle.bundle], repository, DEFAULT)
    assert everything(tmp_path) == before
    assert write_repository([cpu_bundle.bundle], repository, DEFAULT)[-1] == ("digits/2" if there else "digits/1")


@pytest.mark.usefixtures("way")
def test_a_stranger_in_a_new_repository_does_not_hide_why_it_failed(
    cpu_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        (tmp_path / "models" / "somebody's").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "_write_page", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_repository([cpu_bundle.bundle], tmp_path / "models", DEFAULT)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["somebody's"]


def test_nothing_but_whole_models_is_ever_in_the_repository(
    cpu_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, seen = tmp_path / "models", []
    write_repository([cpu_bundle.bundle], repository, ServeRequest(name="older"))
    whole = writing._write

    def watched(folder: Path, model: Any) -> None:
        whole(folder, model)
        seen.append({path.name for path in repository.iterdir() if path.is_dir()})

    monkeypatch.setattr(writing, "_write", watched)
    write_repository([cpu_bundle.bundle], repository, DEFAULT)
    assert seen == [{"older", "older-preprocess", "older-engine"}] * 3
    assert not list(tmp_path.rglob(".*.partial"))


@pytest.mark.parametrize("kind", ["link", "group", "volume"])
def test_a_repository_keeps_its_ways(kind: str, cpu_bundle: Built, tmp_path: Path) -> None:
    """A model on another disk, a group of its own, and a disk of its own."""
    repository = tmp_path / "models"
    if kind == "volume":
        repository = Path("/dev/shm") / f"vitexport-{os.getpid()}"  # noqa: S108 - another file system than tmp_path's
        if not repository.parent.is_dir() or repository.parent.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system here")
    repository.mkdir()
    try:
        if kind == "group":
            if os.geteuid() != 0 and len(os.getgroups()) < 2:
                pytest.skip("this user has one group")
            os.chown(repository, -1, next((group for group in os.getgroups() if group != os.getgid()), 1234))
            repository.chmod(0o2775)
        write_repository([cpu_bundle.bundle], repository, DEFAULT)
        if kind == "link" and Path("/dev/shm").is_dir():  # noqa: S108
            elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))
            shutil.move(repository / "digits-engine", elsewhere / "digits-engine")
            (repository / "digits-engine").symlink_to(elsewhere / "digits-engine")
        assert write_repository([cpu_bundle.bundle], repository, DEFAULT)[-1] == "digits/2"
        assert not list(repository.rglob("*.partial"))
        assert (repository / "digits-engine" / "2" / "model.onnx").is_file()
        groups = {group for _, group, _ in everything(repository).values()}
        assert groups == {repository.stat().st_gid}
    finally:
        if kind == "link":
            shutil.rmtree((repository / "digits-engine").resolve().parent, ignore_errors=True)
        shutil.rmtree(repository, ignore_errors=True)


def test_what_a_kill_left_is_no_model(cpu_bundle: Built, tmp_path: Path) -> None:
    (tmp_path / "digits" / ".digits.abc.partial" / "digits").mkdir(parents=True)
    (tmp_path / "digits-engine").mkdir()
    assert write_repository([cpu_bundle.bundle], tmp_path, DEFAULT)[-1] == "digits/1"
    assert config(tmp_path, "digits-engine").name == "digits-engine"


def test_another_model_that_came_meanwhile_is_not_touched(
    cpu_bundle: Built, web_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(folder: Path) -> None:
        sync(folder)
        monkeypatch.undo()
        write_repository([dynamic(web_bundle)], tmp_path, DEFAULT)

    monkeypatch.setattr("vitexport.triton.repository.sync", meanwhile)
    with pytest.raises(InputError, match="other inputs, outputs or batches"):
        write_repository([cpu_bundle.bundle], tmp_path, DEFAULT)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["digits"]
    assert config(tmp_path).max_batch_size == 8


def test_what_is_no_repository_is_said(web_bundle: Built, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nothing").symlink_to(tmp_path / "absent")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "digits").touch()
    for name, said in (("file", "is not a folder"), ("nothing", "symbolic link to nothing"), ("models", "choose another")):
        with pytest.raises(InputError, match=said):
            write_repository([web_bundle.bundle], tmp_path / name, DEFAULT)
    write_repository([web_bundle.bundle], tmp_path / "absent" / ".." / "new", DEFAULT)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "nothing", "models", "new"}
    (tmp_path / "new" / "digits" / "labels.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"no labels.txt that can be read"):
        write_repository([web_bundle.bundle], tmp_path / "new", DEFAULT)


def test_pages_of_two_models_do_not_meet(web_bundle: Built, tmp_path: Path) -> None:
    for name in ("digits", "Other_2"):
        write_repository([web_bundle.bundle], tmp_path, ServeRequest(name=name))
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        *("client-digits.py", "SERVING-digits.md", "client-Other_2.py", "SERVING-Other_2.md"),
    }
    text = (tmp_path / "SERVING-Other_2.md").read_text(encoding="utf-8")
    manifests = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert [manifest["kind"] for manifest in manifests] == ["ScaledObject", "InferenceService"]
    assert {manifest["metadata"]["name"] for manifest in manifests} == {"other-2"}
    assert 'model="Other_2"' in manifests[0]["spec"]["triggers"][0]["metadata"]["query"]


def test_options_for_what_is_the_operators_are_refused(web_bundle: Built, cpu_bundle: Built, tmp_path: Path) -> None:
    write_repository([dynamic(web_bundle)], tmp_path, dataclasses.replace(DEFAULT, instances=2))
    with pytest.raises(UsageError, match=r"it has count: 2, and `instances` says 3"):
        write_repository([dynamic(web_bundle)], tmp_path, dataclasses.replace(DEFAULT, instances=3))
    with pytest.raises(UsageError, match=r"max_queue_delay_microseconds: 500, and `queue_delay` says 100"):
        write_repository([dynamic(web_bundle)], tmp_path, dataclasses.replace(DEFAULT, queue_delay_us=100))
    path = tmp_path / "digits" / "config.pbtxt"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"instance_group \{.*?\n\}", "", text, flags=re.DOTALL), encoding="utf-8")
    with pytest.raises(UsageError, match=r"it has no count in instance_group, and `instances` says 2"):
        write_repository([dynamic(web_bundle)], tmp_path, dataclasses.replace(DEFAULT, instances=2))
    other = "instance_group: [ # count: 5\n { count: 2, kind: KIND_CPU } ]"
    path.write_text(re.sub(r"instance_group \{.*?\n\}", other, text, flags=re.DOTALL), encoding="utf-8")
    again = dataclasses.replace(DEFAULT, instances=2, queue_delay_us=500)
    assert write_repository([dynamic(web_bundle)], tmp_path, again) == ("digits/2",)
    with pytest.raises(UsageError, match=r"`queue_delay` is for requests that share a batch.* takes batch 1"):
        write_repository([cpu_bundle.bundle], tmp_path / "new", dataclasses.replace(DEFAULT, queue_delay_us=100))
    assert not (tmp_path / "new").exists()


def test_a_name_has_room_for_what_is_made_of_it(web_bundle: Built, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most 200 letters"):
        write_repository([web_bundle.bundle], tmp_path, ServeRequest(name="a" * 201))
    assert write_repository([web_bundle.bundle], tmp_path, ServeRequest(name="a" * 200)) == (f"{'a' * 200}/1",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Other_2", "other-2"), ("7b", "model-7b"), ("_", "model"), (f"{'a' * 49}.b", "a" * 49), ("x" * 99, "x" * 50)],
)
def test_a_name_for_kubernetes(name: str, expected: str) -> None:
    assert writing.kubernetes_name(name) == expected


FAKE_TRITON = """
import json, pathlib
import numpy as np
from tritonclient.utils import InferenceServerException

class InferInput:
    def __init__(self, name, shape, datatype):
        assert (name, datatype) == ("image", "UINT8")
        self.shape = shape
    def set_data_from_numpy(self, array):
        assert list(array.shape) == self.shape and array.dtype == np.uint8
        self.array = array

class InferRequestedOutput:
    def __init__(self, name, class_count):
        self.name, self.class_count = name, class_count

class Answer:
    def __init__(self, values):
        self.values = values
    def as_numpy(self, name):
        return self.values

class InferenceServerClient:
    def __init__(self, server):
        if "://" in server:
            raise InferenceServerException("url should not include the scheme")
        self.server = server
    def infer(self, model, inputs, outputs):
        if self.server == "refused:1":
            raise ConnectionRefusedError(111, "Connection refused")
        if self.server == "strange:1":
            raise InferenceServerException("unknown model")
        array, wanted = inputs[0].array, outputs[0]
        # Brighter on the left than on the right, as the test made it: upright.
        assert array[..., 0, 0].mean() > array[..., -1, 0].mean(), "not upright"
        if wanted.class_count:
            return Answer(np.array([b"0.75:2:two", b"0.25:0"][: wanted.class_count], dtype=object))
        return Answer(np.tile(np.array([0.25, 0.0, 0.75]), (len(array), 1)))
"""


@pytest.fixture
def ask(tmp_path: Path, web_bundle: Built) -> Callable[..., tuple[int, str, str]]:
    """Runs the written client, for a model of some batch, against a stand-in for tritonclient."""
    package = tmp_path / "packages" / "tritonclient"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "http.py").write_text(FAKE_TRITON, encoding="utf-8")
    (package / "utils.py").write_text("class InferenceServerException(Exception): pass\n", encoding="utf-8")

    def run(batch: str, *words: str) -> tuple[int, str, str]:
        repository = tmp_path / f"models-{batch.replace(':', '-')}"
        if not repository.exists():
            write_repository([dynamic(web_bundle, batch)], repository, DEFAULT)
        command = [sys.executable, str(repository / "client-digits.py"), *words]
        environment = {**os.environ, "PYTHONPATH": str(package.parent)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def held(tmp_path: Path) -> str:
    """A picture that is brighter on its left, once it is turned upright."""
    upright = Image.fromarray(np.tile(np.linspace(255, 0, 40).astype(np.uint8)[None, :, None], (30, 1, 3)))
    exif = Image.Exif()
    exif[0x0112] = 3
    upright.rotate(180).save(tmp_path / "held.jpg", exif=exif)
    return str(tmp_path / "held.jpg")


def test_the_client_shows_the_likeliest_classes(ask: Callable[..., tuple[int, str, str]], held: str, tmp_path: Path) -> None:
    assert ask("1", held) == (0, f"{held}\n    75.00%  two\n    25.00%  0\n", "")
    assert ask("1:4:8", held, "--top", "1") == (0, f"{held}\n    75.00%  two\n", "")
    assert ask("1", held, "--top", "1", "--output", "logits") == (0, f"{held}\n     0.7500  two\n", "")
    (tmp_path / "labels.txt").write_text("none\none\nzwei\n", encoding="utf-8")
    labels = ("--labels", str(tmp_path / "labels.txt"))
    assert ask("4", held, "--top", "2", *labels) == (0, f"{held}\n    75.00%  zwei\n    25.00%  none\n", "")
    assert ask("4", held, "--top", "1") == (0, f"{held}\n    75.00%  2\n", "")


def test_the_client_says_what_is_wrong(ask: Callable[..., tuple[int, str, str]], held: str, tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(deep)
    code, out, err = ask("1", "missing.png", str(deep), str(Path(__file__)), held)
    assert (code, out.splitlines()[0]) == (1, held)
    assert [line.split(":")[0] for line in err.splitlines()] == ["missing.png", str(deep), str(Path(__file__))]
    assert "more than 8 bits" in err
    for server, why in (("refused:1", "Connection refused"), ("strange:1", "unknown model")):
        code, out, err = ask("1", held, "--server", server)
        assert (code, out) == (1, "")
        assert re.fullmatch(rf"digits on {server} did not answer: .*{why}\n", err)
    for words, said in (
        (("--top", "0"), "must be 1 or more"),
        (("--labels", "missing"), "missing"),
        (("--server", "http://host:8000"), "--server http://host:8000: url should not include the scheme"),
    ):
        code, _, err = ask("1", held, *words)
        assert code == 2
        assert said in err.splitlines()[-1]
    (tmp_path / "packages" / "tritonclient" / "http.py").write_text(
        "raise RuntimeError('no http support')", encoding="utf-8"
    )
    assert ask("1", held) == (1, "", "tritonclient is missing here: pip install 'tritonclient[http]'\n")
