import numpy as np
import scipy.sparse as sp
import torch

from scvae_ext.minibatch import SparseCounts
from scvae_ext.peaks import AccessiblePeaks

# Cells with several peaks, with none, and with the first and the last alone.
DENSE = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]], dtype=np.float32)
PEAKS = AccessiblePeaks.from_csr(sp.csr_matrix(DENSE))


def dense(peaks):
    return SparseCounts.of_peaks(peaks).dense().numpy()


def test_peaks_are_those_of_the_matrix():
    np.testing.assert_array_equal(dense(PEAKS), DENSE)
    assert PEAKS.n_accessible.tolist() == [2, 0, 1, 1, 4]
    assert len(PEAKS) == 5
    assert PEAKS.nbytes == 4 * 8


def test_cells_are_chosen_as_from_an_array():
    for chosen in ([3, 0, 0, 1], [4], []):
        found = PEAKS[torch.tensor(chosen, dtype=torch.int64)]
        np.testing.assert_array_equal(dense(found), DENSE[np.array(chosen, dtype=int)])
    for cells in (slice(0, 2), slice(1, 5), slice(2, 2), slice(4, 9)):
        np.testing.assert_array_equal(dense(PEAKS[cells]), DENSE[cells])


def test_consecutive_cells_share_the_memory():
    assert PEAKS[2:4].peak_index.data_ptr() == PEAKS.peak_index[2:].data_ptr()


def test_parts_join_to_the_whole():
    joined = AccessiblePeaks.concatenate([PEAKS[:2], PEAKS[2:2], PEAKS[2:]])
    np.testing.assert_array_equal(dense(joined), DENSE)
    assert torch.equal(joined.offsets, PEAKS.offsets)


def test_offsets_stay_on_the_host():
    moved = PEAKS.to("meta")
    assert (moved.peak_index.device.type, moved.offsets.device.type) == ("meta", "cpu")


def test_the_counts_know_where_their_cells_begin():
    counts = SparseCounts.of_peaks(PEAKS[torch.tensor([4, 1, 0])])
    assert counts.cell_offsets.tolist() == [0, 4, 4, 6]
    assert counts.cell_index.tolist() == [0, 0, 0, 0, 2, 2]
