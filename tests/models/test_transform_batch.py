import numpy as np
import pytest

from scvae_ext import SCVAE
from scvae_ext.datasets import synthetic_counts

QUIET = {"return_numpy": True, "key_added": None, "n_samples": 1}


@pytest.fixture(scope="module")
def model():
    adata = synthetic_counts(1200, 60, n_types=3, n_batches=3, inverse_dispersion=10, seed=2)
    SCVAE.setup_anndata(adata, batch_key="batch")
    model = SCVAE(adata, n_hidden=32, n_latent=5)
    model.train(max_steps=300, enable_progress_bar=False)
    return model


def _truth(adata, batch):
    """Expression of the simulator's cells, each in its own state, in a given batch."""
    log = adata.var["log_baseline"].to_numpy() + adata.obsm["latent"] @ adata.varm["loadings"].T
    expression = np.exp(log + adata.varm["batch_effect"][:, batch])
    return expression / expression.sum(1, keepdims=True)


def test_expression_in_another_batch_is_that_of_the_simulator(model):
    """Cells measured in the first batch, expressed in the second: nearer the truth there than what was measured."""
    of_first = np.flatnonzero(model.adata.obs["batch"] == "batch_0")
    truth, own = (_truth(model.adata, batch)[of_first] for batch in (1, 0))
    found = model.get_normalized_expression(indices=of_first, transform_batch="batch_1", **QUIET)
    changed = np.log(found.mean(0)) - np.log(own.mean(0))
    true_change = np.log(truth.mean(0)) - np.log(own.mean(0))
    assert np.corrcoef(changed, true_change)[0, 1] > 0.97
    assert np.polyfit(true_change, changed, 1)[0] == pytest.approx(1.0, abs=0.12)


def test_cells_of_all_batches_agree_in_a_common_batch(model):
    """Types are mixed alike in every batch, so that means by batch differ by the batch alone."""
    batch = model.adata.obs["batch"]
    as_measured, common = (
        model.get_normalized_expression(transform_batch=target, **QUIET)
        for target in (None, ["batch_0", "batch_1", "batch_2"])
    )

    def spread(values):
        return np.std([np.log(values[batch == name].mean(0)) for name in batch.cat.categories], axis=0).mean()

    assert spread(common) < 0.25 * spread(as_measured)
    each = [model.get_normalized_expression(transform_batch=name, **QUIET) for name in batch.cat.categories]
    np.testing.assert_allclose(common, np.mean(each, axis=0), rtol=1e-4, atol=1e-8)
