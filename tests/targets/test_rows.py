from __future__ import annotations

from pathlib import Path

import pytest

from vitexport.errors import InputError
from vitexport.targets import rows

RTX = """
[rtx]
version = "1.7.1"
compute_capabilities = ["7.5", "8.9"]
opset_max = 25
fp32_refused = { "7.5" = "it refused" }
source = ["x"]
"""
JETPACK = """
[[jetpack]]
release = "6.1"
accepts = ["6.1", "6.2", "6.2.x"]
tensorrt = "10.3.0"
opset_max = 20
compute_capabilities = ["8.7"]
source = ["x"]
"""
JETSON = """
[[device]]
id = "jetson-a"
name = "A"
kind = "jetson"
arch = "ampere"
compute_capability = "8.7"
int8_tensor_cores = true
memory_gb = [8]
peaks = { fp16 = 10.2 }
basis = "clock"
jetpacks = ["6.1"]
source = ["x"]
"""
GPU = """
[[device]]
id = "b"
name = "B"
kind = "gpu"
arch = "hopper"
compute_capability = "9.0"
int8_tensor_cores = true
memory_gb = [80]
tensorrt = "10.3.0"
source = ["x"]
"""
CPU = """
[[device]]
id = "cpu-c"
name = "C"
kind = "cpu"
arch = "x86_64"
detect = ["vnni"]
activation = "uint8"
weight_bits = 8
required_flags = ["vnni"]
source = ["x"]
"""
WHOLE = RTX + JETPACK + JETSON + GPU + CPU


def test_a_right_catalogue_is_read() -> None:
    read = rows.read_rows(WHOLE, "test.toml")
    assert list(read.devices) == ["jetson-a", "b", "cpu-c"]
    assert read.devices["jetson-a"].peaks == {"fp16": 10.2}
    assert read.devices["b"].basis is None
    assert read.jetpacks["6.1"].carries("6.2.9")
    assert not read.jetpacks["6.1"].carries("6.3")
    assert not read.jetpacks["6.1"].optional
    assert read.rtx.fp32_refused == {"7.5": "it refused"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # A value of the wrong type or form.
        ('id = "b"', 'id = "B 1"', "device B 1: id is 'B 1'; expected lower-case words"),
        ('id = "b"', 'id = "cpu"', "device cpu: id is 'cpu'; expected"),
        ('id = "b"\n', "", "device: id is missing; expected a text"),
        ('name = "B"', "name = 3", "device b: name is 3; expected a text"),
        ('kind = "gpu"', 'kind = "tpu"', "device b: kind is 'tpu'; expected 'jetson' or 'gpu' or 'cpu'"),
        ('capability = "9.0"', "capability = 9.0", "device b: compute_capability is 9.0; expected a text"),
        ('capability = "9.0"', 'capability = "sm90"', "device b: compute_capability is 'sm90'; expected a version"),
        ("int8_tensor_cores = true\nmemory_gb = [80]", "memory_gb = [80]", "device b: int8_tensor_cores is missing"),
        ("memory_gb = [80]", "memory_gb = 80", "device b: memory_gb is 80; expected a list of positive numbers"),
        ("memory_gb = [80]", "memory_gb = [-80]", "device b: memory_gb is .-80.; expected a list of positive numbers"),
        ("memory_gb = [80]", "memory_gb = []", "device b: memory_gb is ..; expected at least one size"),
        ("memory_gb = [80]", "memory_gb = [80]\nmemory_gbps = 3", "device b: unknown memory_gbps; expected arch, "),
        ('tensorrt = "10.3.0"\nsource = ["x"]', 'tensorrt = "10.3.0"', "device b: source is missing"),
        (
            'tensorrt = "10.3.0"\nsource = ["x"]',
            'tensorrt = "10.3.0"\nsource = []',
            "b: source is ..; expected at least",
        ),
        # Figures.
        ("{ fp16 = 10.2 }", "{ fp16 = 0 }", "jetson-a: peaks is .*; expected a table of positive numbers"),
        ("{ fp16 = 10.2 }", "{ fp61 = 10.2 }", "jetson-a: peaks is .*; expected figures for fp16, fp4, fp8, int8"),
        ('basis = "clock"\n', "", "jetson-a: basis is missing; expected a basis exactly where there are peaks"),
        ("peaks = { fp16 = 10.2 }\n", "", "jetson-a: basis is 'clock'; expected a basis exactly where"),
        ('basis = "clock"', 'basis = "guess"', "jetson-a: basis is 'guess'; expected 'published' or"),
        # Stacks.
        ('jetpacks = ["6.1"]', "jetpacks = []", "jetson-a: jetpacks is empty"),
        ('jetpacks = ["6.1"]\n', "", "jetson-a: jetpacks is missing"),
        ('jetpacks = ["6.1"]', 'jetpacks = ["6.3"]', "jetson-a: jetpacks names '6.3'; expected releases of 6.1"),
        ('jetpacks = ["6.1"]', 'jetpacks = ["six"]', "jetson-a: jetpacks names 'six'"),
        ('jetpacks = ["6.1"]', 'jetpacks = ["6.1"]\ntensorrt = "10.3.0"', "device jetson-a: unknown tensorrt"),
        (
            'capability = "8.7"',
            'capability = "7.2"',
            "jetson-a: compute_capability is '7.2'; expected one of JetPack 6.1",
        ),
        ("opset_max = 20", "opset_max = 20\noptional = true", "jetson-a: jetpacks are all optional upgrades"),
        ('tensorrt = "10.3.0"\nsource', "source", "device b: tensorrt is missing; expected a version"),
        ('capability = "9.0"', 'capability = "8.9"', "device b: tensorrt is 10.3.0; expected none"),
        ('accepts = ["6.1", "6.2", "6.2.x"]', "accepts = []", "jetpack 6.1: accepts is ..; expected releases"),
        ('accepts = ["6.1", "6.2", "6.2.x"]', 'accepts = ["6.x.1"]', "jetpack 6.1: accepts is .*; expected releases"),
        ('accepts = ["6.1", "6.2", "6.2.x"]', 'accepts = ["6.2"]', "jetpack 6.1: accepts is .*; expected 6.1 among"),
        ("opset_max = 20", "opset_max = 20.5", "jetpack 6.1: opset_max is 20.5; expected a positive whole number"),
        ("opset_max = 20", "opset_max = 20\npython = 3", "jetpack 6.1: unknown python"),
        ('compute_capabilities = ["8.7"]', 'compute_capabilities = ["87"]', "jetpack 6.1: compute_capabilities is"),
        ("opset_max = 25", "", "rtx: opset_max is missing"),
        ('version = "1.7.1"', 'version = "new"', "rtx: version is 'new'; expected a version"),
        # CPU classes.
        ("weight_bits = 8", "weight_bits = 7", "cpu-c: required_flags is .*; expected none"),
        ('required_flags = ["vnni"]', "required_flags = []", "cpu-c: required_flags is ..; expected at least vnni"),
        ('detect = ["vnni"]', "detect = []", "cpu-c: detect is ..; expected at least one CPU flag"),
        ('activation = "uint8"', 'activation = "u8"', "cpu-c: activation is 'u8'; expected 'uint8' or 'int8'"),
        ('detect = ["vnni"]', 'detect = ["vnni"]\ncompute_capability = "8.9"', "cpu-c: unknown compute_capability"),
        # The file itself.
        ("[rtx]", "[rtxx]", "rtx is None; expected a table"),
        ("[[jetpack]]", "[jetpack]", "jetpack is .*; expected a list of tables"),
        ('id = "cpu-c"', 'id = "b"', "b is listed twice; expected one row"),
        ("[rtx]", "[rtx", "test.toml: "),
    ],
)
def test_a_wrong_row_is_named_with_its_key(old: str, new: str, message: str) -> None:
    assert old in WHOLE, "this case changes nothing"
    with pytest.raises(InputError, match=message) as caught:
        rows.read_rows(WHOLE.replace(old, new, 1), "test.toml")
    assert str(caught.value).startswith("test.toml: ")
    assert "Correct the catalogue, or reinstall vitexport." in str(caught.value)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(InputError, match="catalogue: unknown dla; expected device, jetpack, rtx"):
        rows.read_rows(WHOLE + '[dla]\nname = "x"\n', "test.toml")


def test_outside_a_jetson_tensorrt_is_at_least_10() -> None:
    old = GPU.replace('tensorrt = "10.3.0"', 'tensorrt = "8.6.1"')
    with pytest.raises(InputError, match=r"device b: tensorrt is 8\.6\.1; expected 10\.0 or later"):
        rows.read_rows(RTX + JETPACK + old, "test.toml")


def test_a_damaged_installation_is_an_input_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rows, "_PATH", tmp_path / "catalogue.toml")
    rows.packaged.cache_clear()
    try:
        with pytest.raises(InputError, match=r"catalogue\.toml: No such file.* Reinstall vitexport"):
            rows.packaged()
    finally:
        rows.packaged.cache_clear()
