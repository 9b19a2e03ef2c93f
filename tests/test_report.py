from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitexport.report import (
    CANDIDATE_COLUMNS,
    LATENCY_COLUMNS,
    OUTPUT_COLUMNS,
    Check,
    Report,
    StageCost,
    Status,
    at_least,
    at_most,
    candidate_rows,
    filled,
    latency_rows,
    output_figures,
    skipped,
)

NAN = math.nan
LATENCY: dict[str, dict[str, Any]] = {
    "pytorch": {"p50_ms": 12.0, "p90_ms": 13.0, "p99_ms": 14.0, "images_per_second": 83.3, "runtime": "PyTorch"},
    "int8": {"p50_ms": 4.0, "p90_ms": 5.0, "p99_ms": 6.0, "images_per_second": 250.0},
}


def make_report(*checks: Check, **changes: Any) -> Report:
    values: dict[str, Any] = {"title": "vit · int8 · CPU", "measurements": {}, "machine": {"cpu": "a CPU"}}
    return Report(checks=checks, **(values | changes))


def make_check(status: Status) -> Check:
    return Check(name="export_parity", status=status, message="a message")


@pytest.mark.parametrize(
    ("measured", "limit", "status"),
    [(0.9, 1.0, "passed"), (1.0, 1.0, "passed"), (1.0001, 1.0, "failed"), (NAN, 1.0, "failed"), (math.inf, 1.0, "failed")],
)
def test_at_most_includes_its_limit_and_fails_a_nan(measured: float, limit: float, status: Status) -> None:
    assert at_most("drop", measured, limit, "m").status == status


@pytest.mark.parametrize(
    ("measured", "limit", "status"),
    [
        (99.5, 99.0, "passed"),
        (99.0, 99.0, "passed"),
        (98.9, 99.0, "failed"),
        (NAN, 99.0, "failed"),
        (-math.inf, 0, "failed"),
    ],
)
def test_at_least_includes_its_limit_and_fails_a_nan(measured: float, limit: float, status: Status) -> None:
    assert at_least("agreement", measured, limit, "m").status == status


@pytest.mark.parametrize(
    ("statuses", "verdict", "code"),
    [
        ((), "passed", 0),
        (("passed", "passed"), "passed", 0),
        (("passed", "skipped"), "passed", 0),
        (("skipped",), "passed", 0),
        (("passed", "failed", "skipped"), "failed", 1),
        (("failed",), "failed", 1),
    ],
)
def test_one_failed_check_fails_the_report(statuses: tuple[Status, ...], verdict: str, code: int) -> None:
    report = make_report(*map(make_check, statuses))
    assert (report.verdict, report.exit_code) == (verdict, code)
    assert report.to_json()["verdict"] == verdict


@pytest.mark.parametrize("status", ["excellent", "PASSED", "", None])
def test_a_check_with_an_unknown_status_is_a_mistake(status: Any) -> None:
    with pytest.raises(ValueError, match=r"export_parity is .*; expected passed, failed or skipped"):
        make_check(status)
    data = make_report(make_check("passed")).to_json()
    data["checks"][0]["status"] = status
    with pytest.raises(ValueError, match="expected passed, failed or skipped"):
        Report.from_json(data)


def test_a_skipped_check_is_never_counted_as_passed() -> None:
    report = make_report(make_check("passed"), skipped("accuracy", "no labels"), skipped("latency", "no GPU"))
    assert report.summary == "1 passed, 0 failed, 2 skipped"


numbers = st.floats(allow_nan=False, allow_infinity=False)
checks = st.builds(
    Check,
    name=st.text(),
    status=st.sampled_from(["passed", "failed", "skipped"]),
    message=st.text(),
    measured=st.none() | numbers,
    limit=st.none() | numbers,
    unit=st.sampled_from(["", "points", "percent", "dB", "ratio"]),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
tables = st.dictionaries(st.text(), values, max_size=4)
reports = st.builds(
    Report,
    title=st.text(),
    checks=st.lists(checks, max_size=4).map(tuple),
    measurements=tables,
    machine=tables,
    stages=st.lists(st.builds(StageCost, name=st.text(), seconds=numbers, peak_mib=st.none() | numbers)).map(tuple),
    notes=st.lists(st.text(), max_size=3).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(reports)
def test_a_report_survives_its_json(report: Report) -> None:
    assert Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


def test_what_json_has_no_number_for_becomes_null() -> None:
    report = make_report(
        at_most("export_parity", NAN, 1e-4, "NaN"),
        measurements={"accuracy": {"sqnr_db": NAN, "cosine": math.inf, "deep": [-math.inf, 1.5]}},
    )
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["checks"][0]["measured"] is None
    assert data["checks"][0]["status"] == "failed"
    assert data["measurements"]["accuracy"] == {"sqnr_db": None, "cosine": None, "deep": [None, 1.5]}


@pytest.mark.parametrize("key", ["title", "checks", "measurements", "machine", "stages", "notes"])
def test_json_that_lacks_a_part_is_no_report(key: str) -> None:
    data = make_report(make_check("passed")).to_json()
    del data[key]
    with pytest.raises(KeyError, match=key):
        Report.from_json(data)


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table after `heading`, header first."""
    after = page.split(heading, 1)[1].strip().splitlines()
    start = next(index for index, line in enumerate(after) if line.startswith("|"))
    rows = []
    for line in after[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").replace("\\|", "\0").split("|")])
    return [row for row in rows if set(row) != {"---"}]


def test_the_page_says_verdict_and_every_check_with_its_limit() -> None:
    page = make_report(
        at_most("accuracy", 0.25, 1.0, "drop +0.25 points", "points"),
        skipped("latency", "no GPU here"),
    ).to_markdown()
    assert page.startswith("# vit · int8 · CPU\n\n**passed**: 1 passed, 0 failed, 1 skipped\n")
    assert cells(page, "skipped\n") == [
        ["check", "result", "what was found", "limit"],
        ["accuracy", "passed", "drop +0.25 points", "1 points"],
        ["latency", "skipped", "no GPU here", ""],
    ]


@pytest.mark.parametrize("message", ["a | b", "first line\nsecond line", "a\r\n|b|\n"])
def test_no_message_breaks_its_row(message: str) -> None:
    page = make_report(skipped("engine", message), make_check("passed")).to_markdown()
    rows = cells(page, "skipped\n")
    assert [len(row) for row in rows] == [4, 4, 4]
    assert [row[0] for row in rows] == ["check", "engine", "export_parity"]


def test_latency_is_shown_against_pytorchs_median() -> None:
    rows = latency_rows(LATENCY)
    assert all(len(row) == len(LATENCY_COLUMNS) for row in rows)
    assert rows[0][5] == "1.00 x"
    assert rows[1] == ("int8", "4.00", "5.00", "6.00", "250.0", "3.00 x", "")


def test_a_ratio_that_a_busy_machine_made_is_marked() -> None:
    assert [row[5] for row in latency_rows(LATENCY, 30.0)][:2] == ["1.00 x (busy)", "3.00 x (busy)"]
    assert latency_rows(LATENCY, 5.0) == latency_rows(LATENCY)


def test_latency_without_pytorch_has_no_ratio() -> None:
    assert latency_rows({"shipped": LATENCY["int8"]})[0][5] == ""


def test_candidates_without_labels_leave_cells_empty() -> None:
    figures = {"images": 64, "agreement_percent": 99.5, "cosine": 0.9999, "sqnr_db": 41.23}
    rows = candidate_rows({"int8": figures})
    assert all(len(row) == len(CANDIDATE_COLUMNS) for row in rows)
    assert filled(CANDIDATE_COLUMNS, rows) == (
        ("precision", "agreement %", "SQNR dB", "cosine", "images"),
        [("int8", "99.50", "41.2", "0.999900", "64")],
    )


def test_candidates_show_the_sign_of_a_drop() -> None:
    row = {"images": 400, "candidate_top1": 99.5, "drop": -0.25}
    assert filled(CANDIDATE_COLUMNS, candidate_rows({"int8": row}))[1] == [("int8", "99.50", "-0.25", "400")]
    assert "+0.50" in candidate_rows({"int8": row | {"drop": 0.5}})[0]


def test_a_candidate_that_failed_before_it_had_figures_is_shown() -> None:
    rows = candidate_rows({"fp16": {"images": 32, "not_finite": 3}})
    assert filled(CANDIDATE_COLUMNS, rows) == (("precision", "images"), [("fp16", "32")])


def outputs_of(**decibels: float) -> dict[str, Any]:
    return {"images": 4, "outputs": {name: {"cosine": 0.5, "sqnr_db": value} for name, value in decibels.items()}}


def test_several_outputs_have_a_table_of_their_own() -> None:
    candidates = {"int8": outputs_of(logits=31.25, feature_0=44.4), "fp32": outputs_of(logits=120.0, feature_0=99.99)}
    rows = output_figures({"candidates": candidates})
    assert rows == [
        ("int8", "logits", "0.500000", "31.2"),
        ("int8", "feature_0", "0.500000", "44.4"),
        ("fp32", "logits", "0.500000", "120.0"),
        ("fp32", "feature_0", "0.500000", "100.0"),
    ]
    page = make_report(make_check("passed"), measurements={"candidates": candidates}).to_markdown()
    assert cells(page, "## Each output against PyTorch") == [list(OUTPUT_COLUMNS), *map(list, rows)]


@pytest.mark.parametrize(
    "candidates",
    [
        {"int8": outputs_of(logits=30.0), "fp32": outputs_of(logits=120.0)},
        {"int8": {"images": 32, "not_finite": 3}, "fp32": outputs_of(embedding=120.0)},
    ],
)
def test_one_output_is_in_the_table_of_candidates_already(candidates: dict[str, Any]) -> None:
    page = make_report(make_check("passed"), measurements={"candidates": candidates}).to_markdown()
    assert "## Against PyTorch" in page
    assert "## Each output against PyTorch" not in page


def test_the_page_has_a_table_for_each_topic_that_was_measured() -> None:
    page = make_report(
        make_check("passed"),
        measurements={
            "latency": LATENCY,
            "size": {"onnx_bytes": 3 * 2**20, "engine_bytes": 2**19},
            "candidates": {"int8": {"images": 5}},
        },
        stages=(
            StageCost(name="export", seconds=1.26, peak_mib=512.4),
            StageCost(name="engine", seconds=0.04, peak_mib=None),
        ),
        notes=("A note.",),
        machine={"cpu": "EPYC", "cpu_flags": ["avx2", "fma"], "versions": {"numpy": "2.4"}},
    ).to_markdown()
    assert [row[0] for row in cells(page, "## Latency")] == ["what", "pytorch", "int8"]
    assert cells(page, "## Size")[1:] == [["onnx", "3.00 MiB"], ["engine", "0.50 MiB"]]
    assert cells(page, "## Against PyTorch")[1][0] == "int8"
    assert cells(page, "## Cost of the build")[1:] == [["export", "1.3 s", "512 MiB"], ["engine", "0.0 s", "not known"]]
    assert cells(page, "## Machine")[1:] == [["cpu", "EPYC"], ["cpu flags", "avx2, fma"], ["versions", "numpy 2.4"]]
    assert "- A note.\n" in page


def test_the_page_leaves_out_what_was_not_measured() -> None:
    page = make_report(make_check("passed"), measurements={"latency": {}}).to_markdown()
    assert [line for line in page.splitlines() if line.startswith("## ")] == ["## Machine"]
