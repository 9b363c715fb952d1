from functools import partial

import numpy as np
import pytest
import torch
import zarr
from stores import stored

from scvae_ext import SCVAE
from scvae_ext.data import align
from scvae_ext.models import inference
from scvae_ext.models.cells import Cells
from scvae_ext.models.pieces import Pieces

STORES = ["backed", "zarr", "lazy h5ad"]
LATENT = partial(inference.latent_mean, n_samples=100, seed=0)


@pytest.fixture(params=STORES)
def opened(request, adata, tmp_path):
    with stored(adata, request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def lazy(adata, tmp_path):
    """Lazy counts in chunks of 40 cells."""
    with stored(adata, "lazy h5ad", tmp_path) as opened:
        opened.X = opened.X.rechunk((40, 30))
        yield opened


def pieces_of(model, adata, positions=None):
    source = align(adata, model.registry)
    positions = np.arange(source.n_cells) if positions is None else np.asarray(positions)
    return Pieces(model.module, Cells(source, positions, torch.device("cpu")), LATENT, 3)


def test_pieces_cover_the_cells_in_order(model, adata, monkeypatch):
    monkeypatch.setattr("scvae_ext.models.pieces._MOST_CELLS", 50)
    pieces = pieces_of(model, adata)
    assert pieces.places() == [(0, 50), (50, 100), (100, 120)]
    expected = model.get_latent_representation(key_added=None)
    for place, values in pieces:
        np.testing.assert_allclose(values, expected[place], atol=1e-6)


def test_a_piece_is_small_however_many_genes(model, adata, monkeypatch):
    monkeypatch.setattr("scvae_ext.models.pieces._ENTRIES_OF_A_PIECE", 100)
    assert {stop - start for start, stop in pieces_of(model, adata).places()[:-1]} == {33}


def test_lazy_counts_are_computed_chunk_by_chunk(model, lazy):
    pieces = pieces_of(model, lazy, [3, 39, 40, 41, 119])
    assert pieces.is_lazy
    assert pieces.places() == [(0, 2), (2, 4), (4, 5)]
    expected = model.get_latent_representation(key_added=None)[[3, 39, 40, 41, 119]]
    np.testing.assert_allclose(pieces.in_memory(), expected, atol=1e-6)
    np.testing.assert_allclose(pieces.dask_array().compute(), expected, atol=1e-6)
    assert not pieces_of(model, lazy, [3, 2]).is_lazy


def test_a_dask_array_has_the_weights_of_its_time(model, lazy):
    later = pieces_of(model, lazy).dask_array()
    expected = model.get_latent_representation(key_added=None)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.mul_(0.5)
    np.testing.assert_allclose(later.compute(), expected, atol=1e-6)


def test_counts_that_change_before_dask_computes_are_noticed(model, adata, tmp_path):
    with stored(adata, "lazy zarr", tmp_path) as opened:
        later = pieces_of(model, opened).dask_array()
        values = zarr.open_group(tmp_path / "stored.zarr", mode="r+")["X/data"]
        values[7] = np.nan
        with pytest.raises(RuntimeError, match=r"adata.X has changed since it was read first"):
            later.compute()


@pytest.mark.parametrize("kind", ["nb", "simplex", "latent library", "autoencoder"])
def test_getters_do_not_depend_on_where_counts_lie(load, opened, kind):
    model = load(kind)
    latent = model.get_latent_representation(key_added=None)
    options = {"return_numpy": True, "transform_batch": "batch_1", "gene_list": ["gene_7", "gene_2"]}
    expression = model.get_normalized_expression(key_added=None, **options)
    np.testing.assert_allclose(model.get_latent_representation(opened), latent, atol=1e-5)
    key = model.latent_key
    np.testing.assert_allclose(opened.obsm[key], latent, atol=1e-5)
    found = model.get_normalized_expression(opened, **options)
    np.testing.assert_allclose(np.asarray(found), expression, rtol=1e-4, atol=1e-7)
    chosen = np.array([100, 4, 7])
    np.testing.assert_allclose(
        model.get_latent_representation(opened, indices=chosen, key_added=None), latent[chosen], atol=1e-5
    )


def test_expression_of_a_lazy_anndata_is_lazy(model, lazy):
    dask_array = pytest.importorskip("dask.array")
    expected = model.get_normalized_expression(return_numpy=True, key_added=None)
    found = model.get_normalized_expression(lazy)
    assert isinstance(found, dask_array.Array)
    assert isinstance(lazy.layers["scvae_normalized"], dask_array.Array)
    assert found.chunks[0] == (40, 40, 40)
    np.testing.assert_allclose(lazy.layers["scvae_normalized"].compute(), expected, rtol=1e-4, atol=1e-7)


def test_elbo_of_any_store(model, opened):
    assert model.get_elbo(opened) == pytest.approx(model.get_elbo(), rel=1e-6)


def test_training_from_any_store(simulated, opened):
    options = {"max_steps": 40, "enable_progress_bar": False, "batch_size": 32}
    del opened.uns["scvae_ext"]
    models = []
    for adata in (simulated.copy(), opened):
        SCVAE.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
        models.append(SCVAE(adata, n_hidden=16, n_latent=3))
        models[-1].train(**options)
    in_memory, from_disk = models
    np.testing.assert_array_equal(from_disk.validation_indices, in_memory.validation_indices)
    # Only the order of cells differs.
    assert from_disk.get_elbo(simulated) == pytest.approx(in_memory.get_elbo(simulated), rel=0.005)
    scores = [model.history["elbo_validation"].iloc[-1] for model in models]
    assert scores[1] == pytest.approx(scores[0], rel=0.005)
