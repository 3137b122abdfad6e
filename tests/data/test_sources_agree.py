"""What `load_data`, a fit, the estimator and `molrmog info` make of a source: always the same, and as documented."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import matrix

DOCS = Path(__file__).parents[2] / "docs" / "sources.md"


@pytest.mark.slow
def test_the_four_agree_on_every_column_in_every_format():
    found, odd = matrix.ask()
    assert not odd, "\n".join(odd)
    assert len(found) == len(matrix.cases()) > 200
    assert matrix.markdown(found) in DOCS.read_text()
