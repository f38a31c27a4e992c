"""Corrupt files of every kind: a one-line error, within 5 s and 1 GB, or a valid result."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parsers import EDITS, INTERESTING, PARSERS, Parser, edited

from mnist_ce.system.errors import MnistCeError

reproducible = settings(derandomize=True, database=None, suppress_health_check=list(HealthCheck))
contents = st.sampled_from(INTERESTING) | st.binary(min_size=1, max_size=8)
edits = st.tuples(st.sampled_from(EDITS), st.floats(0, 1), st.integers(1, 64), contents)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of unusual images
@pytest.mark.parametrize("num_examples", [40, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_a_corrupt_file_is_an_error_of_one_line(parser: Parser, num_examples: int) -> None:
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    messages: list[str] = []

    @settings(reproducible, max_examples=num_examples, deadline=5000)
    @given(seed=st.sampled_from(parser.seeds), changes=st.lists(edits, min_size=1, max_size=4))
    def check(seed: bytes, changes: list[tuple[str, float, int, bytes]]) -> None:
        for change in changes:
            seed = edited(seed, *change)
        path.write_bytes(seed)
        try:
            parser.parse(path)
        except MnistCeError as error:
            messages.append(str(error))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, parser.name)
        for good in parser.seeds:
            path.write_bytes(good)
            parser.parse(path)
        check()
    assert [message for message in messages if not message or "\n" in message] == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 1e6
