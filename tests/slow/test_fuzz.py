"""Corrupt files of every kind: a one-line error, within 5 s and 1 GB, or a valid result."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parsers import EDITS, INTERESTING, PARSERS, Edit

from mnist_ce.system.errors import MnistCeError

edits = st.builds(
    Edit,
    kind=st.sampled_from(EDITS),
    place=st.floats(0, 1),
    length=st.integers(1, 64),
    content=st.sampled_from(INTERESTING) | st.binary(min_size=1, max_size=8),
)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.filterwarnings("ignore")  # Pillow warns of unusual images
@pytest.mark.parametrize("num_examples", [40, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PARSERS)
def test_a_corrupt_file_is_an_error_of_one_line(name: str, num_examples: int) -> None:
    parser = PARSERS[name]
    before = peak_bytes()
    messages: list[str] = []

    @settings(
        max_examples=num_examples,
        deadline=5000,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.sampled_from(parser.seeds), changes=st.lists(edits, min_size=1, max_size=4))
    def check(seed: bytes, changes: list[Edit]) -> None:
        for change in changes:
            seed = change.apply(seed)
        try:
            parser.parse(Path(folder), seed)
        except MnistCeError as error:
            messages.append(str(error))

    with tempfile.TemporaryDirectory() as folder:
        for good in parser.seeds:
            parser.parse(Path(folder), good)
        check()
    assert [message for message in messages if not message or "\n" in message] == []
    assert peak_bytes() - before < 1e9
