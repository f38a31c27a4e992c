"""The interface answers as its own description, /openapi.json, says."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import CLIENT, SEVEN, Demo

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
reproducible = settings(derandomize=True, database=None, suppress_health_check=list(HealthCheck))
NAMES = st.sampled_from(["world", "mnist", "small"])
Value = tuple[str | list[str] | None, bool]  # of a parameter, and whether it is right


def values(parameter: dict[str, Any]) -> st.SearchStrategy[Value]:
    """Draw a parameter's value by its schema, right or wrong; None where it is left out."""
    schema = parameter["schema"].get("anyOf", [parameter["schema"]])[0]
    low, high = schema.get("minimum", 0), schema.get("maximum", 10)
    if names := schema.get("enum"):
        return st.sampled_from([(names[0], True), (names[-1], True), ("x", False)])
    right: dict[str, st.SearchStrategy[Any]] = {
        "boolean": st.sampled_from(["true", "false", "1", "0"]),
        "integer": st.integers(low, high).map(str),
        "number": st.floats(low, high).map(str),
        "string": st.sampled_from("0123456789") if parameter["name"] == "target" else NAMES,
        "array": st.lists(NAMES, min_size=1, max_size=schema.get("maxItems", 2)),
    }
    wrong: dict[str, st.SearchStrategy[Any]] = {
        "string": st.text(),
        "array": st.lists(st.text(), min_size=3, max_size=4),
    }
    numbers = st.integers(max_value=-1).map(str) | st.sampled_from(["", "nan", "1" * 5000, "x"])
    missing: Value = (None, not parameter["required"])
    return st.one_of(
        st.just(missing),
        right[schema["type"]].map(lambda value: (value, True)),
        wrong.get(schema["type"], numbers).map(lambda value: (value, False)),
    )


@pytest.mark.slow
def test_every_answer_is_one_that_is_described(demo: Demo) -> None:
    paths = demo.get("/openapi.json").json()["paths"]
    form = {"files": {"images": ("seven.png", SEVEN)}}
    bodies: list[tuple[dict[str, Any], bool]] = [
        *(({"content": SEVEN}, True), (form, True), ({"content": b"text"}, False)),
        *(({}, False), ({"data": {"images": "text"}}, False), ({"files": {"a": b""}}, False)),
    ]

    @settings(reproducible, max_examples=250, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(paths)))
        declared = {method.upper() for method in paths[path]}
        method = data.draw(st.sampled_from(METHODS) | st.sampled_from(sorted(declared)))
        operation = paths[path].get(method.lower(), {})
        drawn = {p["name"]: data.draw(values(p)) for p in operation.get("parameters", [])}
        query = {name: value for name, (value, _) in drawn.items() if value is not None}
        body, is_right = data.draw(st.sampled_from(bodies)) if method == "POST" else ({}, True)
        url = httpx.URL(f"{demo.url}{path}", params=query)
        answer = CLIENT.request(method, url, **body)
        status = answer.status_code
        if method not in declared:
            assert (status, answer.headers["allow"]) == (405, ", ".join(declared))
        elif all(is_valid for _, is_valid in drawn.values()) and (is_right or "session" in path):
            assert status in (200, 201, 204), answer.text
        assert status < 500
        if status >= 400 and not isinstance(answer.json(), list):
            assert list(answer.json()) == ["error"]
            assert len(answer.json()["error"].splitlines()) == 1

    check()
