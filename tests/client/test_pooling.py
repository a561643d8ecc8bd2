from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.pooling import finished, pooled, pooling_of
from protocol.embedding_settings import EmbeddingSettings
from protocol.errors import InvalidRequestError

ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(2, 5)), elements=st.integers(-9, 9))


@given(rows=ROWS, dimensions=st.integers(1, 2))
def test_vectors_have_length_1_and_a_cut_one_is_the_whole_ones_beginning(rows: np.ndarray, dimensions: int) -> None:
    assert np.allclose(pooled(rows, "mean"), rows.mean(axis=0), atol=1e-5)
    assert (pooled(rows, "last") == rows[-1]).all()
    assert (pooled(rows, "cls") == rows[0]).all()
    vector = pooled(rows, "mean")
    cut = finished(vector, dimensions=dimensions, normalize=True)
    length = float(np.linalg.norm(vector[:dimensions]))
    assert np.allclose(cut * length, vector[:dimensions], atol=1e-5)
    assert np.linalg.norm(cut) == pytest.approx(1.0 if length else 0.0, abs=1e-5)
    assert (finished(vector, dimensions=None, normalize=False) == vector).all()


def test_the_authors_way_is_taken_and_one_that_is_not_run_here_is_refused() -> None:
    assert (pooling_of("m", "encoder", None), pooling_of("m", "decoder", None)) == ("mean", "last")
    assert pooling_of("m", "encoder", EmbeddingSettings(pooling="cls")) == "cls"
    with pytest.raises(InvalidRequestError, match=r"vectors by a further layer .*mean, last or cls"):
        pooling_of("m", "encoder", EmbeddingSettings(pooling="mean", unsupported="a further layer (Dense)"))
