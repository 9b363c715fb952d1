import warnings

import anndata as ad
import numpy as np
import pytest

from scvae_ext import CiteVAE, MultiomeVAE
from scvae_ext.cli import main
from scvae_ext.cli.quality import FEWEST_CELLS
from scvae_ext.datasets import synthetic_counts


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "counts.h5ad"
    adata = synthetic_counts(n_cells=200, n_genes=60, n_types=3, n_batches=2, seed=0)
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(path)
    return path


def _error(capsys, *arguments):
    """Run ``fit``, which has to fail, and return its one line."""
    assert main(["fit", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("scvae-ext fit: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_writes_the_results_of_the_data_named(counts, tmp_path, capsys):
    out, figure = tmp_path / "out.h5ad", tmp_path / "figure.png"
    words = [counts, "--layer", "counts", "--batch-key", "batch", "--labels-key", "cell_type", "--n-latent", 4]
    words += ["--max-epochs", 2, "--out", out, "--figure", figure, "--normalized-expression"]
    assert main(["fit", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("training SCVAE on 200 cells and 60 genes, at most 4 updates\n")
    assert "held-out ELBO: -" in printed
    assert "Leiden clusters (at the best of 20 resolutions) against cell_type: ARI " in printed

    before, after = ad.read_h5ad(counts), ad.read_h5ad(out)
    assert after.obsm["X_scvae"].shape == (200, 4)
    assert np.isfinite(after.obsm["X_scvae"]).all()
    np.testing.assert_allclose(np.asarray(after.layers["scvae_normalized"].sum(1)).ravel(), 1.0, rtol=1e-4)
    assert (after.X != before.X).nnz == 0
    assert after.obs_names.equals(before.obs_names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "out.h5ad"]


def test_proteins_are_modelled_where_they_are_named(tmp_path, capsys):
    adata = synthetic_counts(n_cells=150, n_genes=40, n_proteins=3)
    adata.write_h5ad(tmp_path / "counts.h5ad")
    words = [tmp_path / "counts.h5ad", "--protein-key", "protein", "--max-epochs", 2, "--out", tmp_path / "out.h5ad"]
    words += ["--save-model", tmp_path / "model"]
    assert main(["fit", *map(str, words)]) == 0
    after = ad.read_h5ad(tmp_path / "out.h5ad")
    assert list(after.obsm["scvae_protein"]) == ["protein_0", "protein_1", "protein_2"]
    assert after.obsm["scvae_protein_foreground"].to_numpy().max() <= 1
    assert CiteVAE.load(tmp_path / "model", after).protein_names == list(after.obsm["scvae_protein"])
    message = _error(capsys, tmp_path / "counts.h5ad", "--protein-key", "proteins", "--out", tmp_path / "other.h5ad")
    assert "--protein-key: adata.obsm['proteins'] was not found. Did you mean 'protein'" in message


def test_peaks_are_modelled_where_they_are_named(tmp_path, capsys):
    adata = synthetic_counts(n_cells=150, n_genes=40, n_peaks=25, seed=1)
    adata.write_h5ad(tmp_path / "counts.h5ad")
    words = [tmp_path / "counts.h5ad", "--accessibility-key", "accessibility", "--peak-names-key", "peaks"]
    words += ["--max-epochs", 2, "--out", tmp_path / "out.h5ad", "--save-model", tmp_path / "model"]
    assert main(["fit", *map(str, words)]) == 0
    after = ad.read_h5ad(tmp_path / "out.h5ad")
    assert after.obsm["X_scvae"].shape == (150, 20)
    assert MultiomeVAE.load(tmp_path / "model", after).peak_names == list(after.uns["peaks"])
    other = [tmp_path / "counts.h5ad", "--out", tmp_path / "other.h5ad"]
    assert "--peak-names-key names the peaks of" in _error(capsys, *other, "--peak-names-key", "peaks")
    both = _error(capsys, *other, "--accessibility-key", "accessibility", "--protein-key", "protein")
    assert "--protein-key and --accessibility-key ask for different models" in both


def test_labels_are_predicted_where_asked(tmp_path, capsys):
    adata = synthetic_counts(n_cells=240, n_genes=60, n_types=3, seed=0)
    adata.obs["known"] = adata.obs["cell_type"].astype(str)
    adata.obs.loc[adata.obs_names[::2], "known"] = "to be found"
    adata.write_h5ad(tmp_path / "counts.h5ad")
    words = [tmp_path / "counts.h5ad", "--labels-key", "known", "--predict-labels", "--out", tmp_path / "out.h5ad"]
    words += ["--unlabeled-category", "to be found", "--figure", tmp_path / "figure.png", "--color", "cell_type"]
    assert main(["fit", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert 'labels of 240 cells are in obs["scvae_label"]' in printed
    assert "Leiden" not in printed
    after = ad.read_h5ad(tmp_path / "out.h5ad")
    hidden = after.obs["known"] == "to be found"
    assert (after.obs["scvae_label"].astype(str) == after.obs["cell_type"].astype(str))[hidden].mean() > 0.9
    other = [tmp_path / "counts.h5ad", "--out", tmp_path / "other.h5ad"]
    assert "needs --labels-key KEY" in _error(capsys, *other, "--predict-labels")


def test_the_seed_decides_everything(counts, tmp_path):
    latent = {}
    for name, seed in {"first": 3, "again": 3, "other": 4}.items():
        out = tmp_path / f"{name}.h5ad"
        assert main(["fit", str(counts), "--max-epochs", "1", "--seed", str(seed), "--out", str(out)]) == 0
        latent[name] = ad.read_h5ad(out).obsm["X_scvae"]
    np.testing.assert_array_equal(latent["first"], latent["again"])
    assert not np.array_equal(latent["first"], latent["other"])


def test_the_output_is_checked_before_the_input_is_read(tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    out.write_text("precious")
    message = _error(capsys, tmp_path / "missing.h5ad", "--out", out)
    assert f"{out} exists; add --overwrite" in message
    assert out.read_text() == "precious"


def test_a_folder_that_is_no_model_is_refused_before_the_work(counts, tmp_path, capsys):
    folder = tmp_path / "thesis"
    folder.mkdir()
    words = [counts, "--out", tmp_path / "out.h5ad", "--overwrite", "--save-model", folder]
    assert f"{folder} exists and is not a saved model" in _error(capsys, *words)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "{tmp}/out.csv"], "does not end in .h5ad"),
        (["--out", "{tmp}/no/out.h5ad"], "does not exist; make it first"),
        (["--out", "{tmp}/out.h5ad", "--color", "batch"], "add --figure"),
        (["--out", "{tmp}/out.h5ad", "--figure", "{tmp}/f.doc", "--color", "batch"], "no known suffix"),
        (["--out", "{tmp}/out.h5ad", "--figure", "{tmp}/f.png"], "needs --color KEY"),
        (["--out", "{tmp}/out.h5ad", "--figure", "{tmp}/f.png", "--color", "tpye"], "'tpye' is neither a column"),
        (["--out", "{tmp}/out.h5ad", "--save-model", "{tmp}/./out.h5ad"], "--out and --save-model are both"),
        (
            ["--out", "{tmp}/out.h5ad", "--save-model", "{tmp}/m.png", "--figure", "{tmp}/m.png", "--color", "batch"],
            "--save-model and --figure are both",
        ),
        (["--out", "{tmp}/out.h5ad", "--layer", "cuonts"], "--layer: adata.layers['cuonts'] was not found"),
        (["--out", "{tmp}/out.h5ad", "--batch-key", "donor"], "donor"),
        (["--out", "{tmp}/out.h5ad", "--gene-likelihood", "negbin"], "negbin"),
        (["--out", "{tmp}/out.h5ad", "--n-latent", "0"], "--n-latent 0 must be"),
        (["--out", "{tmp}/out.h5ad", "--max-epochs", "0"], "--max-epochs 0 must be"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(counts, words, message, tmp_path, capsys):
    assert message in _error(capsys, counts, *(word.format(tmp=tmp_path) for word in words))
    assert not list(tmp_path.iterdir())


def test_cells_that_are_too_few_for_a_figure(counts, tmp_path, capsys):
    few, out = tmp_path / "few.h5ad", tmp_path / "out.h5ad"
    ad.read_h5ad(counts)[:3].write_h5ad(few)
    words = [few, "--labels-key", "cell_type", "--max-epochs", 1, "--out", out]
    message = _error(capsys, *words, "--figure", tmp_path / "figure.png")
    assert "--figure needs 4 cells, and " in message
    assert list(tmp_path.iterdir()) == [few]
    with warnings.catch_warnings():
        # Most genes have no counts in three cells.
        warnings.simplefilter("ignore", UserWarning)
        assert main(["fit", *map(str, words)]) == 0
    assert "3 cells are too few for clusters to compare with cell_type" in capsys.readouterr().out
    assert ad.read_h5ad(out).obsm["X_scvae"].shape[0] == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_fewest_cells_of_a_figure_are_enough(counts, tmp_path):
    few, figure = tmp_path / "few.h5ad", tmp_path / "figure.png"
    ad.read_h5ad(counts)[:FEWEST_CELLS].write_h5ad(few)
    words = [few, "--labels-key", "cell_type", "--max-epochs", 1, "--out", tmp_path / "out.h5ad", "--figure", figure]
    assert main(["fit", *map(str, words)]) == 0
    assert figure.exists()


def test_files_that_are_no_h5ad(tmp_path, capsys):
    assert "is not a file" in _error(capsys, tmp_path / "missing.h5ad", "--out", tmp_path / "out.h5ad")
    text = tmp_path / "text.h5ad"
    text.write_text("gene,cell\n")
    assert "cannot be read as .h5ad" in _error(capsys, text, "--out", tmp_path / "out.h5ad")


def test_overwrites_when_told(counts, tmp_path):
    out = tmp_path / "out.h5ad"
    out.write_text("old")
    assert main(["fit", str(counts), "--max-epochs", "1", "--out", str(out), "--overwrite"]) == 0
    assert "X_scvae" in ad.read_h5ad(out).obsm
