import warnings

import anndata
import numpy as np
import pytest
import torch

from scvae_ext import SCVAE, Autoencoder, CiteVAE
from scvae_ext.data import align
from scvae_ext.datasets import synthetic_counts
from scvae_ext.models.cells import Cells

SMALL = {"n_hidden": 16, "n_latent": 3}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def simulated():
    adata = synthetic_counts(120, 30, n_types=3, n_batches=2)
    adata.obs["depth"] = adata.obs["library_size"] / 1000
    adata.obs["age"] = range(120)
    del adata.layers["mean"]
    SCVAE.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
    return adata


@pytest.fixture
def adata(simulated):
    return simulated.copy()


def train(model, **options):
    model.train(**({"max_steps": 40, "enable_progress_bar": False} | options))
    return model


@pytest.fixture(scope="session")
def trained_folder(simulated, tmp_path_factory):
    """A trained model of each kind on disk, for tests to load."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {
        "nb": {},
        "zinb": {"gene_likelihood": "zinb", "dispersion": "gene-cell"},
        "poisson": {"gene_likelihood": "poisson"},
        "normal": {"gene_likelihood": "normal"},
        "simplex": {"latent_distribution": "ln"},
        "latent library": {"use_observed_lib_size": False},
    }
    for kind, options in kinds.items():
        train(SCVAE(simulated.copy(), **SMALL, **options)).save(folder / kind)
    train(Autoencoder(simulated.copy(), **SMALL)).save(folder / "autoencoder")
    with_factor = simulated.copy()
    SCVAE.setup_anndata(with_factor, size_factor_key="depth", continuous_covariate_keys=["age"])
    train(SCVAE(with_factor, **SMALL)).save(folder / "size factor")
    return folder


@pytest.fixture
def load(trained_folder, adata):
    """Load a trained model by its kind, with an AnnData of its own."""

    def load(kind="nb"):
        return (Autoencoder if kind == "autoencoder" else SCVAE).load(trained_folder / kind, adata)

    return load


@pytest.fixture
def model(load):
    return load()


@pytest.fixture
def cells(model):
    def cells(positions=None, batch_size=None):
        source = align(model.adata, model.registry)
        positions = np.arange(source.n_cells) if positions is None else np.asarray(positions)
        return Cells(source, positions, torch.device("cpu"), batch_size)

    return cells


@pytest.fixture(params=["h5ad", "zarr"])
def round_trip(request, tmp_path):
    def write_and_read(adata):
        path = tmp_path / f"adata.{request.param}"
        if request.param == "h5ad":
            adata.write_h5ad(path)
            return anndata.read_h5ad(path)
        # anndata and zarr warn of the formats of their next releases, whatever is written.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_zarr(path)
            return anndata.read_zarr(path)

    return write_and_read


@pytest.fixture(scope="module")
def cite():
    """A small model of genes and proteins, one of which is not measured in one batch."""
    adata = synthetic_counts(120, 30, n_batches=2, n_proteins=5)
    adata.obsm["protein"].loc[adata.obs["batch"] == "batch_1", "protein_1"] = np.nan
    with pytest.warns(UserWarning, match="not measured there"):
        CiteVAE.setup_anndata(adata, batch_key="batch", protein_expression_obsm_key="protein")
    model = CiteVAE(adata, n_hidden=16, n_latent=3)
    model.train(max_steps=50, enable_progress_bar=False)
    return model
