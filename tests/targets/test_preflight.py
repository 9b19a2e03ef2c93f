from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitexport.targets import PRECISIONS, Finding, ModelFacts, Target, catalogue, findings, resolve
from vitexport.targets.rows import packaged
from vitexport.targets.target import version_key

VIT_SMALL = ModelFacts(parameters=22_050_664, peak_activation_elements=197 * 384 * 5)
CHOICES = [(row.id, release) for row in catalogue().values() for release in (None, *row.jetpacks)]
targets = st.sampled_from(CHOICES).map(lambda choice: resolve(choice[0], jetpack=choice[1]))


def messages(found: tuple[Finding, ...], level: str) -> list[str]:
    return [finding.message for finding in found if finding.level == level]


def look(target: Target, precision: str, batch_max: int = 1, model: ModelFacts | None = VIT_SMALL) -> tuple[Finding, ...]:
    return findings(target, precision=precision, batch_max=batch_max, model=model)


@pytest.mark.parametrize("name", ["l4", "rtx-4090", "gb10"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_speaks_against_a_plain_build(name: str, precision: str) -> None:
    assert look(resolve(name), precision, 32) == ()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_nothing_speaks_against_a_cpu(precision: str) -> None:
    assert look(resolve("cpu-x86-avx2"), precision, 10**9) == ()


@pytest.mark.parametrize(
    ("name", "precision", "parts"),
    [
        ("cpu-x86-vnni", "fp16", ["fp16 is not available for cpu-x86-vnni", " use fp32 or int8."]),
        ("jetson-nano", "int8", ["5.3 has no INT8 tensor cores", " use fp32."]),
        ("jetson-tx2", "int8", ["6.2 has no INT8 tensor cores", " use fp32."]),
        ("t4", "fp32", ["no float32 matrix multiplication", "7.5", " use fp16 or int8."]),
        ("l4", "fp8", ["fp8 is not offered", " use fp32 or fp16 or int8."]),
        ("cpu-x86-avx2", "fp8", ["fp8 is not offered", " use fp32 or int8."]),
        ("l4", "INT8", ["INT8 is not offered", "vitexport builds fp32, fp16, int8"]),
        ("l4", "", ["is not offered"]),
    ],
)
def test_a_precision_that_cannot_be_built_is_an_error_with_its_cure(name: str, precision: str, parts: list[str]) -> None:
    errors = messages(look(resolve(name), precision), "error")
    assert len(errors) == 1
    assert all(part in errors[0] for part in parts)


def test_a_cpu_without_an_int8_class_says_what_it_lacks() -> None:
    target = resolve("cpu", cpu_flags=frozenset({"asimd"}), cpu_arch="aarch64")
    (error,) = messages(look(target, "int8"), "error")
    assert "needs a CPU with i8mm or asimddp" in error
    assert error.endswith(" use fp32.")


@pytest.mark.parametrize(("precision", "weight_bytes", "activation_bytes"), [("fp32", 4, 4), ("fp16", 2, 2), ("int8", 1, 2)])
def test_memory_is_weights_plus_a_batch_of_activations(precision: str, weight_bytes: int, activation_bytes: int) -> None:
    # 80 % of 24 GB are 19.2e9 bytes: the weights leave room for exactly 100 images.
    model = ModelFacts(parameters=1_200_000_000 // weight_bytes, peak_activation_elements=180_000_000 // activation_bytes)
    target = resolve("l4")
    assert look(target, precision, 100, model) == ()
    (error,) = messages(look(target, precision, 101, model), "error")
    assert "The largest batch that fits is 100." in error
    assert f"{precision} with batches of up to 101 needs about 19.38 GB" in error
    assert "l4 has 24 GB, of which 80 %" in error


@given(
    targets.filter(lambda target: target.memory_gb is not None),
    st.sampled_from(PRECISIONS),
    st.integers(1, 10**6),
    st.builds(ModelFacts, parameters=st.integers(1, 10**11), peak_activation_elements=st.integers(0, 10**9)),
)
def test_the_batch_that_is_named_fits_and_the_next_does_not(
    target: Target, precision: str, batch_max: int, model: ModelFacts
) -> None:
    about_memory = [text for text in messages(look(target, precision, batch_max, model), "error") if " GB, " in text]
    if not about_memory:
        return
    (error,) = about_memory
    _, named, tail = error.partition("The largest batch that fits is ")
    largest = int(tail.rstrip(".")) if named else 0
    assert largest < batch_max

    def fits(batch: int) -> bool:
        return not any(" GB, " in text for text in messages(look(target, precision, batch, model), "error"))

    assert not fits(largest + 1)
    assert fits(largest) if named else "Not even batch 1 fits" in error


def test_a_single_image_may_be_all_that_fits() -> None:
    (error,) = messages(
        look(resolve("l4"), "fp16", 2, ModelFacts(parameters=1, peak_activation_elements=6 * 10**9)), "error"
    )
    assert "The largest batch that fits is 1." in error


def test_weights_alone_can_be_too_large() -> None:
    (error,) = messages(
        look(resolve("jetson-nano"), "fp32", 1, ModelFacts(parameters=10**9, peak_activation_elements=0)), "error"
    )
    assert "Not even batch 1 fits" in error


def test_without_a_model_memory_is_not_judged() -> None:
    assert look(resolve("l4"), "fp32", 10**9, None) == ()


@pytest.mark.parametrize("batch_max", [0, -1])
def test_a_batch_below_one_is_an_error(batch_max: int) -> None:
    assert messages(look(resolve("l4"), "fp16", batch_max), "error") == [f"The largest batch is {batch_max}; use 1 or more."]


@pytest.mark.parametrize("release", ["5.0.2", "5.1"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_orin_before_tensorrt_8_6_has_no_fused_attention(release: str, precision: str) -> None:
    (warning,) = messages(look(resolve("jetson-agx-orin-32gb", jetpack=release), precision), "warning")
    assert "no fused attention on Orin" in warning
    assert f"JetPack {release}" in warning
    assert "`jetpack=6.0` or later" in warning


def test_the_release_that_the_attention_warning_recommends_is_the_first_with_it() -> None:
    able = [row.release for row in packaged().jetpacks.values() if version_key(row.tensorrt) >= (8, 6)]
    assert min(able, key=version_key) == "6.0"
    assert packaged().jetpacks["6.0"].tensorrt == "8.6.2"


@pytest.mark.parametrize(
    ("name", "release", "precision"),
    [
        ("jetson-orin-nano-8gb", "6.0", "fp16"),
        ("jetson-orin-nano-8gb", "6.1", "int8"),
        ("jetson-orin-nano-8gb", "5.1", "fp32"),
        ("jetson-xavier-nx", "5.1", "fp16"),
    ],
)
def test_elsewhere_attention_is_not_warned_about(name: str, release: str, precision: str) -> None:
    assert messages(look(resolve(name, jetpack=release), precision), "warning") == []


def test_only_b300_is_warned_off_int8() -> None:
    warned = {
        name for name in catalogue() if any("slower" in text for text in messages(look(resolve(name), "int8"), "warning"))
    }
    assert warned == {"b300"}
    (warning,) = messages(look(resolve("b300"), "int8"), "warning")
    assert "153.5 TOPS" in warning
    assert "2250 TFLOPS" in warning
    assert warning.endswith("Use fp16.")
    assert messages(look(resolve("b300"), "fp16"), "warning") == []


def test_an_engine_of_full_tensorrt_is_built_on_the_device() -> None:
    noted = {
        name
        for name in catalogue()
        if any("on the device itself" in text for text in messages(look(resolve(name), "fp16"), "note"))
    }
    assert noted == {name for name in catalogue() if resolve(name).runtime == "tensorrt"}
    assert "TensorRT 10.3.0 or later" in messages(look(resolve("h200"), "fp16"), "note")[0]
    assert "TensorRT 10.3.0:" in messages(look(resolve("jetson-orin-nx-8gb", jetpack="6.2"), "fp16"), "note")[0]


@given(targets)
def test_weak_typing_is_noted_where_it_holds(target: Target) -> None:
    noted = [text for text in messages(look(target, "fp16"), "note") if "weakly typed" in text]
    assert bool(noted) == (target.typing == "weak")


@pytest.mark.parametrize(
    ("name", "release", "part"),
    [("jetson-nano", "4.6", "8.0.1"), ("jetson-agx-orin-64gb", "7.2.2", "use --jetpack 7.2.")],
)
def test_the_note_of_a_release_is_passed_on(name: str, release: str, part: str) -> None:
    assert any(part in text for text in messages(look(resolve(name, jetpack=release), "fp16"), "note"))


def test_everything_is_said_at_once_and_errors_first() -> None:
    huge = ModelFacts(parameters=10**11, peak_activation_elements=1)
    levels = [finding.level for finding in look(resolve("jetson-nano"), "int8", 0, huge)]
    assert levels == ["error", "error", "error", "note", "note", "note"]
    orin = resolve("jetson-agx-orin-32gb", jetpack="5.1")
    assert [finding.level for finding in look(orin, "fp16", 1, huge)] == ["error", "warning", "note", "note"]


def test_a_target_of_a_later_catalogue_can_be_judged() -> None:
    target = dataclasses.replace(resolve("jetson-t5000"), id="jetson-t9000", jetpack="9.0", tensorrt="12.0")
    assert [finding.level for finding in look(target, "fp16")] == ["note"]


@given(targets, st.sampled_from([*PRECISIONS, "fp8", "int4"]), st.integers(-1, 10**6))
def test_every_message_is_whole_sentences(target: Target, precision: str, batch_max: int) -> None:
    for finding in look(target, precision, batch_max):
        assert finding.message.endswith(".")
        assert ".." not in finding.message
        assert "None" not in finding.message
