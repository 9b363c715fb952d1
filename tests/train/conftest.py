import numpy as np
import pytest
import torch

from scvae_ext.data import align, read_registry, setup_anndata, synthetic_counts
from scvae_ext.modules import VAE

N_CELLS, N_GENES = 200, 20


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def source():
    adata = synthetic_counts(N_CELLS, N_GENES, n_batches=2)
    setup_anndata(adata, batch_key="batch")
    return align(adata, read_registry(adata))


@pytest.fixture
def vae():
    return VAE(N_GENES, n_batches=2, n_hidden=16, n_latent=3)


@pytest.fixture
def split():
    return np.arange(0, 160), np.arange(160, N_CELLS)
