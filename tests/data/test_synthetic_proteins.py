import numpy as np

from scvae_ext.data import synthetic_counts


def test_counts_have_the_moments_of_their_truth():
    adata = synthetic_counts(4000, 20, n_batches=2, n_proteins=6, seed=3)
    counts, mean = adata.obsm["protein"].to_numpy(), adata.obsm["protein_mean"].to_numpy()
    z = (counts - mean) / np.sqrt(mean + mean**2 / 5)
    assert (np.abs(z.mean(0)) < 4.5 / np.sqrt(4000)).all()
    np.testing.assert_allclose((z**2).mean(0), 1, atol=0.15)
    foreground = adata.obsm["protein_foreground"].to_numpy().astype(bool)
    background = adata.obsm["protein_background"].to_numpy()
    np.testing.assert_allclose(mean[~foreground], background[~foreground])
    assert np.median(mean[foreground] / background[foreground]) > 3
    by_type = adata.obsm["protein_foreground"].groupby(adata.obs["cell_type"], observed=True).mean().to_numpy()
    assert ((by_type > 0.9) | (by_type < 0.1)).all()
    assert (by_type > 0.9).any(0).all()
    assert (by_type < 0.1).any(0).all()


def test_genes_are_the_same_with_and_without_proteins():
    with_them, without = synthetic_counts(50, 10, n_proteins=3), synthetic_counts(50, 10)
    assert (with_them.X != without.X).nnz == 0
    assert "protein" not in without.obsm
