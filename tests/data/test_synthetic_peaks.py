import numpy as np

from scvae_ext.data import synthetic_counts


def test_peaks_are_accessible_as_often_as_their_truth_says():
    adata = synthetic_counts(4000, 20, n_batches=2, n_peaks=40, seed=3)
    seen = adata.obsm["accessibility"].toarray()
    probability = -np.expm1(-adata.obs["accessibility_depth"].to_numpy()[:, None] * adata.obsm["accessibility_rate"])
    z = (seen - probability) / np.sqrt(probability * (1 - probability))
    assert (np.abs(z.mean(0)) < 4.5 / np.sqrt(4000)).all()
    assert seen.sum(1).min() >= 1
    assert len(adata.uns["peaks"]) == 40


def test_genes_are_the_same_with_and_without_peaks():
    with_them, without = synthetic_counts(50, 10, n_peaks=3), synthetic_counts(50, 10)
    assert (with_them.X != without.X).nnz == 0
    assert "accessibility" not in without.obsm
