"""The written Android project: its resources, and its Kotlin, compiled against declarations of the API and run in part."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from conftest import Built
from projects import HERE, PACKAGES, RELEASES, STUBS, ran

from vitexport.apps import write_app

COMPILER = PACKAGES / "kotlin-compiler"
AAR = RELEASES / "Android" / "onnxruntime.aar"
ANDROID_10 = Path("/usr/share/android-framework-res/framework-res.apk")
# Starts in half the time, and nothing here runs long enough for the better code.
JAVA = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
JVM = pytest.mark.skipif(shutil.which("java") is None or shutil.which("javac") is None, reason="java or javac is missing")
KOTLIN = pytest.mark.skipif(
    not COMPILER.is_dir() or not AAR.is_file(),
    reason="npm's kotlin-compiler or com.github.asus4.onnxruntime is missing; run scripts/app-packages",
)
AAPT = pytest.mark.skipif(
    shutil.which("aapt2") is None or not ANDROID_10.is_file(),
    reason="Debian's aapt or android-framework-res is missing; run scripts/app-packages as root",
)


@dataclasses.dataclass(frozen=True)
class Project:
    """The written project, its resources, and its Kotlin in one piece."""

    root: Path
    strings: set[str]
    xml: str
    kotlin: str

    @property
    def sources(self) -> list[str]:
        return [str(path) for path in sorted(self.root.rglob("*.kt"))]

    def setting(self, pattern: str) -> str:
        """The one value that Gradle's files have for `pattern`."""
        text = "".join(path.read_text(encoding="utf-8") for path in sorted(self.root.rglob("*.gradle.kts")))
        (value,) = re.findall(pattern, text)
        return str(value)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Where the classes are, and what the compiler said of the project."""

    classpath: str
    returncode: int
    messages: str


def xml_of(path: Path) -> ET.Element:
    return ET.parse(path).getroot()  # noqa: S314 - a file that was just written


@pytest.fixture(scope="module")
def project(web_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("android") / "project"
    write_app(web_bundle.bundle, "android", root)
    main = root / "app" / "src" / "main"
    files = (main / "res" / "layout" / "activity_main.xml", main / "AndroidManifest.xml")
    return Project(
        root=root,
        strings={entry.attrib["name"] for entry in xml_of(main / "res" / "values" / "strings.xml")},
        xml="".join(ET.tostring(xml_of(path), encoding="unicode") for path in files),
        kotlin="".join(path.read_text(encoding="utf-8") for path in sorted(root.rglob("*.kt"))),
    )


@pytest.fixture(scope="module")
def compiled(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The project as Gradle would compile it, were the Android SDK there: in its language version, for its JVM."""
    folder = tmp_path_factory.mktemp("classes")
    (folder / "R.java").write_text(resources_class(project), encoding="utf-8")
    sources = [str(path) for path in sorted((STUBS / "java").rglob("*.java"))]
    ran(["javac", "-d", "stubs", "R.java", *sources], folder)
    version = project.setting(r'kotlin\.android"\) version "(\d+\.\d+)')
    command = [*JAVA, "-cp", str(COMPILER / "lib" / "kotlin-compiler.jar"), "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"]
    command += ["-kotlin-home", str(COMPILER), "-no-reflect", "-d", "project", "-Werror", "-Wextra"]
    # ONNX Runtime's own classes, as the project will get them; the stand-in for them is only run.
    with zipfile.ZipFile(AAR) as archive:
        archive.extract("classes.jar", folder)
    command += ["-cp", f"classes.jar{os.pathsep}stubs"]
    # The compiler of the tests is newer than the project's, and would warn that its language is an old one.
    command += ["-language-version", version, "-api-version", version, "-Xsuppress-version-warnings"]
    command += ["-jvm-target", project.setting(r'jvmTarget = "(\d+)"'), *project.sources]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=180)
    parts = (folder / "project", folder / "stubs", COMPILER / "lib" / "kotlin-stdlib.jar")
    return Compiled(os.pathsep.join(map(str, parts)), done.returncode, done.stdout + done.stderr)


def resources_class(project: Project) -> str:
    """What Android's build makes of the resources."""
    layouts = {path.stem for path in project.root.rglob("res/layout/*.xml")}
    names = {"string": project.strings, "layout": layouts, "id": set(re.findall(r"@\+id/(\w+)", project.xml))}
    package = project.setting(r'namespace = "(.+)"')
    lines = [f"package {package};", "public final class R {"]
    for kind, found in names.items():
        lines.append(f"  public static final class {kind} {{")
        lines += [f"    public static final int {name} = {number};" for number, name in enumerate(sorted(found))]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def test_the_resources_are_there(project: Project) -> None:
    kotlin, xml = project.kotlin, project.xml
    assert set(re.findall(r"R\.string\.(\w+)", kotlin)) | set(re.findall(r"@string/(\w+)", xml)) == project.strings
    assert set(re.findall(r"R\.id\.(\w+)", kotlin)) == set(re.findall(r"@\+id/(\w+)", xml))
    assert re.findall(r"R\.layout\.(\w+)", kotlin) == ["activity_main"]


@AAPT
def test_android_takes_resources_and_manifest(project: Project, tmp_path: Path) -> None:
    main, package = project.root / "app" / "src" / "main", project.setting(r'namespace = "(.+)"')
    ran(["aapt2", "compile", "--dir", str(main / "res"), "-o", "res.zip"], tmp_path)
    # Gradle puts the package there too.
    manifest = (
        (main / "AndroidManifest.xml").read_text(encoding="utf-8").replace("<manifest", f'<manifest package="{package}"')
    )
    (tmp_path / "AndroidManifest.xml").write_text(manifest, encoding="utf-8")
    command = ["aapt2", "link", "-o", "app.apk", "-I", str(ANDROID_10), "--manifest", "AndroidManifest.xml", "--java", "."]
    ran([*command, "--min-sdk-version", project.setting(r"minSdk = (\d+)"), "res.zip", "-A", str(main / "assets")], tmp_path)
    badging = ran(["aapt2", "dump", "badging", "app.apk"], tmp_path)
    (activity,) = re.findall(r"launchable-activity: name='(.+?)'", badging)
    name = activity.removeprefix(f"{package}.")
    assert f"package {package}\n" in project.kotlin
    assert re.search(rf"^class {name}\b", project.kotlin, re.MULTILINE)
    resources = (tmp_path / package.replace(".", "/") / "R.java").read_text(encoding="utf-8")
    assert resource_names(resources) == resource_names(resources_class(project))


def resource_names(resources: str) -> dict[str, set[str]]:
    """Kind and names of an R.java."""
    parts = resources.split("static final class ")[1:]
    return {part.split("{")[0].strip(): set(re.findall(r"static final int (\w+)", part)) for part in parts}


@JVM
@KOTLIN
def test_the_kotlin_compiles_without_a_warning(compiled: Compiled) -> None:
    assert (compiled.returncode, compiled.messages) == (0, "")


@JVM
@KOTLIN
@pytest.mark.parametrize(
    "labels", [["cat", 'a "dog", hound', "Ente\\Gans", "日本"], None, "absent"], ids=["labels", "null", "absent"]
)
def test_the_classifier_hands_over_pixels_and_reads_the_answer(compiled: Compiled, labels: object, tmp_path: Path) -> None:
    model = "probabilities 0.125 0.25 0.5 0.0625\ntop_indices 2 1 0"
    if labels != "absent":
        model += f"\nvitexport.labels {json.dumps(labels, ensure_ascii=False)}"
    # Two rows of three, opaque but for one; every channel has its own number, and some have their highest bit set.
    colors = [(1, 2, 3), (200, 201, 202), (7, 8, 9), (10, 255, 0), (13, 14, 15), (16, 17, 128)]
    alphas = [255, 255, 255, 255, 0, 255]
    pixels = [alpha << 24 | r << 16 | g << 8 | b for alpha, (r, g, b) in zip(alphas, colors, strict=True)]
    command = [*JAVA, "-Dfile.encoding=UTF-8", "-cp", compiled.classpath, str(HERE / "Classify.java")]
    (tmp_path / "model").write_text(model, encoding="utf-8")
    seen = ran([*command, "model", "3", *map(str, pixels)], tmp_path).splitlines()
    flat = [channel for color in colors for channel in color]
    assert seen[0] == f"UINT8 [1, 2, 3, 3] {flat}"
    names = labels if isinstance(labels, list) else ["0", "1", "2", "3"]
    assert seen[1:] == [f"0.5 {names[2]}", f"0.25 {names[1]}", f"0.125 {names[0]}"]


@JVM
@KOTLIN
@pytest.mark.parametrize(
    ("task", "model", "expected"),
    [
        (
            '"multi-label"\nvitexport.threshold 0.5',
            "probabilities 0.125 0.75 0.5 0.0625\ntop_indices 1 2 0",
            ["0.75 dog", "0.5 bird"],
        ),
        ('"multi-label"\nvitexport.threshold 0.8', "probabilities 0.125 0.75 0.5\ntop_indices 1 2 0", []),
        ('"classification"', "probabilities 0.25 0.75\ntop_indices 1 0", ["0.75 dog", "0.25 cat"]),
        ('"regression"', "values 7.25 -3", ["7.25 cat", "-3.0 dog"]),
    ],
    ids=["labels", "no label", "one logit", "regression"],
)
def test_the_classifier_answers_as_its_task_is(
    task: str, model: str, expected: list[str], compiled: Compiled, tmp_path: Path
) -> None:
    labels = json.dumps(["cat", "dog", "bird", "fish"])
    (tmp_path / "model").write_text(f"{model}\nvitexport.labels {labels}\nvitexport.task {task}", encoding="utf-8")
    command = [*JAVA, "-cp", compiled.classpath, str(HERE / "Classify.java")]
    assert ran([*command, "model", "1", "4278190080"], tmp_path).splitlines()[1:] == expected
