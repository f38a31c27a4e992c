"""Whatever stands in a run's files, the page and the interface show the runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import SEVEN, Demo

from mnist_ce.cli import main
from mnist_ce.demo.live import runs_now

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
SURROGATE = "\ud800"
ODD = st.sampled_from(
    [float("nan"), float("inf"), 10**400, -1, 0, SURROGATE, {SURROGATE: 1}, [SURROGATE], [], {}]
)
CELLS = st.sampled_from(["nan", "inf", "-1", "", "x", "9" * 400, "1e999", "0", "\ud800"])


@pytest.mark.slow
def test_records_that_other_programs_wrote(demo: Demo, tmp_path: Path) -> None:
    original = demo.folder / "runs" / "small"
    record = json.loads((original / "run.json").read_text())
    keys = [*record, *(f"config.{table}" for table in record["config"])]
    keys += [f"config.{t}.{key}" for t, values in record["config"].items() for key in values]
    odd = demo.folder / "runs" / "odd"

    @settings(
        max_examples=200,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.dictionaries(st.sampled_from(keys), ODD | JSON, max_size=4),
        st.lists(CELLS, min_size=5, max_size=10),
    )
    def check(changes: dict[str, Any], cells: list[str]) -> None:
        shutil.rmtree(odd, ignore_errors=True)
        shutil.copytree(original, odd)
        changed = json.loads(json.dumps(record))
        for key, value in changes.items():
            *tables, last = key.split(".")
            place = changed
            for table in tables:
                place = place[table] if isinstance(place.get(table), dict) else {}
            place[last] = value
        (odd / "run.json").write_text(json.dumps(changed))
        for name in ("metrics.csv", "steps.csv"):
            header = (original / name).read_text().splitlines()[0]
            row = ",".join((cells * 3)[: header.count(",") + 1])
            (odd / name).write_text(f"{header}\n{row}\n", errors="surrogatepass")
        content = runs_now(demo.folder / "runs", ["odd"])
        json.dumps(content, allow_nan=False).encode()
        answer = demo.get("/v1/models")
        assert answer.status_code == 200
        json.dumps(answer.json(), allow_nan=False)
        answer = demo.post("/v1/inspect?checkpoint=odd", SEVEN)
        assert answer.status_code in (200, 404, 422), answer.text

    try:
        check()
    finally:
        shutil.rmtree(odd, ignore_errors=True)


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes exist on Linux only")
@pytest.mark.parametrize("name", [b"caf\xe9", b"line\nbreak", b"-x", b"latest", b"a b?&#<i>"])
def test_a_run_may_have_any_name_on_disk(
    demo: Demo, name: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    output = demo.folder / "runs"
    folder = output / os.fsdecode(name)
    shutil.copytree(output / "small", folder)
    try:
        shown = {run["name"] for run in demo.get("/v1/models").json()}
        (shown,) = shown - {"world", "mnist", "small"}
        options = httpx.QueryParams({"checkpoint": shown})
        (inspected,) = demo.post(f"/v1/inspect?{options}", SEVEN).json()
        assert inspected["checkpoint"] == shown
        assert [curve["name"] for curve in runs_now(output, [shown])["curves"]] == [shown]
        for flags in ([], ["--json"]):
            assert main(["runs", "--output", str(output), *flags]) == 0
        assert shown in capsys.readouterr().out
    finally:
        shutil.rmtree(folder)
