import warnings
from contextlib import contextmanager

import anndata as ad
import numpy as np
import pytest

from scvae_ext import SCVAE, Autoencoder
from scvae_ext.cli import main
from scvae_ext.datasets import synthetic_counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Counts of a reference and of a new batch, and models of the reference without and with labels."""
    folder = tmp_path_factory.mktemp("mapped")
    adata = synthetic_counts(n_cells=600, n_genes=40, n_types=3, n_batches=3, seed=1)
    is_new = (adata.obs["batch"] == "batch_2").to_numpy()
    adata[~is_new].copy().write_h5ad(folder / "reference.h5ad")
    adata[is_new].copy().write_h5ad(folder / "query.h5ad")
    for name, words in (("plain", []), ("labelled", ["--labels-key", "cell_type", "--predict-labels"])):
        command = ["fit", folder / "reference.h5ad", "--out", folder / f"{name}.h5ad", "--batch-key", "batch", *words]
        assert main([*map(str, command), "--save-model", str(folder / name), "--max-epochs", "60"]) == 0
    return folder


@contextmanager
def _shown_warnings():
    """Show warnings, as they are outside of tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        yield


def _run(folder, tmp_path, *words, model="plain", query="query.h5ad"):
    given = ["map", folder / model, folder / query, "--out", tmp_path / "out.h5ad", *words]
    return main([*map(str, given)])


def _error(capsys, folder, tmp_path, *words, **more):
    assert _run(folder, tmp_path, *words, **more) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("scvae-ext map: error: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out.h5ad").exists()
    return captured.err


def test_new_cells_are_mapped_and_compared_with_those_of_the_reference(folder, tmp_path, capsys):
    words = ["--reference", folder / "reference.h5ad", "--labels-key", "cell_type", "--max-epochs", 60]
    assert _run(folder, tmp_path, *words, "--normalized-expression", "--save-model", tmp_path / "model") == 0
    written, printed = ad.read_h5ad(tmp_path / "out.h5ad"), capsys.readouterr().out
    assert (written.obs["scvae_neighbor_label"].astype(str) == written.obs["cell_type"].astype(str)).mean() > 0.85
    assert written.obsm["X_scvae"].shape == (200, 10)
    np.testing.assert_allclose(written.layers["scvae_normalized"].sum(1), 1, rtol=1e-4)
    n_far = (written.obs["scvae_novelty_latent_p"] < 0.01).sum()
    assert f"{n_far} of 200 cells lie where the reference has hardly any" in printed
    loaded = SCVAE.load(tmp_path / "model", written)
    np.testing.assert_allclose(loaded.get_latent_representation(key_added=None), written.obsm["X_scvae"], atol=1e-5)


def test_labels_are_predicted_by_a_model_that_knows_some(folder, tmp_path, capsys):
    query = ad.read_h5ad(folder / "query.h5ad")
    del query.obs["cell_type"]
    query.write_h5ad(folder / "unlabelled.h5ad")
    assert _run(folder, tmp_path, "--max-epochs", 60, model="labelled", query="unlabelled.h5ad") == 0
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    truth = ad.read_h5ad(folder / "query.h5ad").obs["cell_type"].astype(str)
    assert (written.obs["scvae_label"].astype(str) == truth).mean() > 0.85
    assert "labels of 200 cells" in capsys.readouterr().out


def test_missing_genes_are_dropped_only_where_that_is_asked_for(folder, tmp_path, capsys):
    ad.read_h5ad(folder / "query.h5ad")[:, 5:].copy().write_h5ad(folder / "few.h5ad")
    message = _error(capsys, folder, tmp_path, query="few.h5ad")
    assert "lacks 5 of the 40 genes" in message
    assert "pass --drop-missing-genes" in message
    with _shown_warnings():
        assert _run(folder, tmp_path, "--drop-missing-genes", "--max-epochs", 2, query="few.h5ad") == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: 5 of the 40 genes")
    assert captured.err.count("\n") == 1
    assert captured.out.startswith("training SCVAE on 200 cells and 35 genes, at most ")


def test_mistakes_are_one_line_and_leave_nothing_behind(folder, tmp_path, capsys):
    assert "--reference FILE.h5ad, which is missing" in _error(capsys, folder, tmp_path, "--labels-key", "cell_type")
    assert "is not a saved model" in _error(capsys, folder, tmp_path, model="nothing")
    assert "is not a file" in _error(capsys, folder, tmp_path, query="nothing.h5ad")
    assert "is not a file" in _error(capsys, folder, tmp_path, "--reference", folder / "nothing.h5ad")
    assert "no batch that the reference does not know" in _error(capsys, folder, tmp_path, query="reference.h5ad")
    assert "--max-epochs 0" in _error(capsys, folder, tmp_path, "--max-epochs", 0)
    assert "exists; add --overwrite" in _error(capsys, folder, tmp_path, "--save-model", folder / "plain")
    assert "are both" in _error(capsys, folder, tmp_path, "--save-model", tmp_path / "out.h5ad")
    words = ["--max-epochs", 1, "--reference", folder / "reference.h5ad", "--labels-key", "type"]
    assert "'type'" in _error(capsys, folder, tmp_path, *words)


def test_proteins_are_predicted_where_they_were_not_measured(folder, tmp_path, capsys):
    adata = synthetic_counts(120, 20, n_proteins=3, n_batches=2)
    is_new = (adata.obs["batch"] == "batch_1").to_numpy()
    adata[~is_new].copy().write_h5ad(tmp_path / "reference.h5ad")
    query = adata[is_new].copy()
    del query.obsm["protein"]
    query.write_h5ad(tmp_path / "query.h5ad")
    words = ["fit", tmp_path / "reference.h5ad", "--out", tmp_path / "fitted.h5ad", "--protein-key", "protein"]
    words += ["--batch-key", "batch", "--save-model", tmp_path / "cite", "--max-epochs", 2]
    assert main(list(map(str, words))) == 0
    query_file = tmp_path / "query.h5ad"
    capsys.readouterr()
    words = ["--reference", tmp_path / "reference.h5ad"]
    assert "what a CiteVAE cannot say" in _error(capsys, folder, tmp_path, *words, model=tmp_path / "cite")
    with _shown_warnings():
        assert _run(folder, tmp_path, "--max-epochs", 2, model=tmp_path / "cite", query=query_file) == 0
    assert "warning: 3 of 3 proteins" in capsys.readouterr().err
    assert ad.read_h5ad(tmp_path / "out.h5ad").obsm["scvae_protein"].shape == (60, 3)


def test_models_of_other_kinds_are_refused(folder, tmp_path, capsys):
    adata = synthetic_counts(60, 20)
    Autoencoder.setup_anndata(adata)
    model = Autoencoder(adata)
    model.train(max_epochs=1, enable_progress_bar=False)
    model.save(tmp_path / "autoencoder")
    message = _error(capsys, folder, tmp_path, model=tmp_path / "autoencoder")
    assert "holds a model of the class Autoencoder, and cells can be mapped onto SCVAE" in message
