import numpy as np
import pytest
from stores import KINDS, stored

from scvae_ext.data.fields import Layer
from scvae_ext.data.opening import open_counts
from scvae_ext.data.stored import OnDiskCounts


class Recorder:
    """Takes the place of a reader, and remembers which rows were read."""

    where = "adata.X"
    rows_per_block = 64

    def __init__(self, dense, spans):
        self.dense, self.shape, self.spans = dense, dense.shape, spans
        self.was_read = []

    def read(self, spans):
        for start, stop in spans:
            self.was_read.append((start, stop))
            yield self.dense[start:stop]


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_cover_the_rows_in_order(adata, counts, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("scvae_ext.data.matrix._ROWS_PER_CHUNK", 13)
    with stored(adata, kind, tmp_path) as opened:
        starts, parts = zip(*open_counts(opened, Layer()).chunks(), strict=True)
    if not kind.startswith("lazy"):
        assert starts == (0, 13, 26, 39, 52)
    np.testing.assert_array_equal(np.vstack([part.toarray() for part in parts]), counts)


def test_rows_that_are_kept_are_not_read_again(counts):
    reader = Recorder(counts, lambda rows: [(int(row), int(row) + 1) for row in rows])
    matrix = OnDiskCounts(reader, None, 40)
    matrix.keep(np.array([30, 4, 17]))
    assert reader.was_read == [(4, 5), (17, 18), (30, 31)]
    reader.was_read.clear()
    np.testing.assert_array_equal(matrix.rows(np.array([17, 30, 17])).toarray(), counts[[17, 30, 17]])
    assert reader.was_read == []
    np.testing.assert_array_equal(matrix.rows(np.array([17, 5])).toarray(), counts[[17, 5]])
    assert reader.was_read == [(5, 6), (17, 18)]
    matrix.keep(np.arange(0))
    matrix.rows(np.array([17]))
    assert reader.was_read[-1] == (17, 18)
