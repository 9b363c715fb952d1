import importlib
import re

import pytest

from scvae_ext import Autoencoder
from scvae_ext.cli import main
from scvae_ext.datasets import synthetic_counts


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Fit on the command line and save the model."""
    folder = tmp_path_factory.mktemp("saved")
    synthetic_counts(n_cells=200, n_genes=30, n_types=3, seed=0).write_h5ad(folder / "counts.h5ad")
    words = ["fit", folder / "counts.h5ad", "--out", folder / "out.h5ad", "--save-model", folder / "model"]
    assert main([*map(str, words), "--n-latent", "3", "--max-epochs", "20"]) == 0
    return folder


def _error(capsys, *arguments):
    """Run ``report``, which has to fail, and return its one line."""
    assert main(["report", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("scvae-ext report: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("CiteVAE", {"n_proteins": 3}, ["--protein-key", "protein"]),
        ("MultiomeVAE", {"n_peaks": 15}, ["--accessibility-key", "accessibility"]),
        ("SemiSupervisedVAE", {}, ["--labels-key", "cell_type", "--predict-labels"]),
    ],
)
def test_models_of_every_kind_that_fit_saves(name, more, words, tmp_path, monkeypatch):
    counts, out = str(tmp_path / "counts.h5ad"), str(tmp_path / "report.html")
    synthetic_counts(n_cells=120, n_genes=20, n_types=3, seed=1, **more).write_h5ad(counts)
    fit = ["fit", counts, "--out", str(tmp_path / "out.h5ad"), "--save-model", str(tmp_path / "model"), *words]
    assert main([*fit, "--max-epochs", "1"]) == 0
    asked = []
    module = importlib.import_module("scvae_ext.cli.report")
    monkeypatch.setattr(module, "write_report", lambda *words, **_: asked.extend(words))
    assert main(["report", str(tmp_path / "model"), counts, "--out", out]) == 0
    assert type(asked[0]).__name__ == name
    assert asked[0].adata.n_obs == 120


def test_models_of_other_kinds_are_refused(saved, tmp_path, capsys):
    adata = synthetic_counts(60, 20)
    Autoencoder.setup_anndata(adata)
    model = Autoencoder(adata)
    model.train(max_epochs=1, enable_progress_bar=False)
    model.save(tmp_path / "autoencoder")
    message = _error(capsys, tmp_path / "autoencoder", saved / "counts.h5ad", "--out", tmp_path / "report.html")
    assert "of the class Autoencoder, and a report can be written of SCVAE" in message


@pytest.mark.slow
def test_report_of_a_model_that_fit_saved(saved, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert main(["report", str(saved / "model"), str(saved / "counts.h5ad"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 of 6: Evidence\n2 of 6: Posterior collapse\n" in printed
    assert re.search(rf"wrote {re.escape(str(out))} after \d+ s", printed)
    page = out.read_text()
    assert "200 cells, 30 genes" in page
    assert 'id="evidence"' in page
    assert 'id="compare_likelihoods"' not in page


@pytest.mark.parametrize("trains", ["compare_likelihoods", "compare_autoencoder"])
def test_sections_that_train_are_there_when_asked_for(saved, tmp_path, monkeypatch, trains):
    sections = []
    # The module has the name of its function.
    module = importlib.import_module("scvae_ext.cli.report")
    monkeypatch.setattr(module, "write_report", lambda *_, **options: sections.extend(options["sections"]))
    words = ["report", str(saved / "model"), str(saved / "counts.h5ad"), "--out", str(tmp_path / "report.html")]
    assert main([*words, f"--{trains.replace('_', '-')}"]) == 0
    assert {name for name in sections if name.startswith("compare")} == {trains}
    assert "evidence" in sections


def test_outputs_are_checked_before_anything_is_read(tmp_path, capsys):
    assert "does not end in .html" in _error(capsys, tmp_path / "model", "--out", tmp_path / "report.pdf")
    (tmp_path / "report.html").write_text("precious")
    assert "add --overwrite" in _error(capsys, tmp_path / "model", "--out", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "precious"


def test_a_model_needs_its_counts(saved, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert "needs the counts" in _error(capsys, saved / "model", "--out", out)
    assert "is not a file" in _error(capsys, saved / "model", tmp_path / "missing.h5ad", "--out", out)
    assert str(tmp_path / "nothing") in _error(capsys, tmp_path / "nothing", saved / "counts.h5ad", "--out", out)


def test_fit_does_not_replace_a_saved_model_unasked(saved, tmp_path, capsys):
    words = ["fit", saved / "counts.h5ad", "--out", tmp_path / "out.h5ad", "--save-model", saved / "model"]
    assert main([*map(str, words), "--max-epochs", "1"]) == 2
    assert f"{saved / 'model'} exists; add --overwrite" in capsys.readouterr().err
    assert not (tmp_path / "out.h5ad").exists()
