import re
import socket

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

from scvae_ext.cli import main


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments):
        raise OSError("the demo may not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.slow
def test_the_latent_space_separates_the_known_types(offline, tmp_path, capsys):
    folder = tmp_path / "results"
    assert main(["demo", "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    elbo = float(re.search(r"held-out ELBO: (-[\d.]+) nats per cell \(70 cells\)", printed).group(1))
    ari = {name: float(value) for name, value in re.findall(r"  (scVAE|PCA)\D*ARI ([\d.]+)", printed)}

    adata = ad.read_h5ad(folder / "scvae-ext-demo.h5ad")
    assert ari["scVAE"] > 0.4
    assert ari["scVAE"] > ari["PCA"] - 0.1
    # Worse than independent Poissons at each gene's share of the counts would mean that nothing was learnt.
    counts = adata.X.toarray().astype(float)
    rate = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    poisson = (counts * np.log(rate) - rate).sum(1).mean() - _log_factorial(counts).sum(1).mean()
    assert poisson < elbo < 0

    assert adata.obsm["X_scvae"].shape == (700, 10)
    assert adata.layers["scvae_normalized"].shape == (700, 765)
    height, width, _ = plt.imread(folder / "scvae-ext-demo.png").shape
    assert width > 1.8 * height
    assert sorted(path.name for path in folder.iterdir()) == ["scvae-ext-demo.h5ad", "scvae-ext-demo.png"]


def _log_factorial(counts):
    table = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, counts.max() + 1)))])
    return table[counts.astype(int)]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("scvae-ext demo: error: cannot make the folder")
    assert captured.err.count("\n") == 1
