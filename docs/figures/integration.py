"""Figure of docs/analysis/integration.md: what the penalty on batches takes away, and what it costs.

python docs/figures/integration.py
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import scvae_ext as sv
from scvae_ext.modules import batch_dependence

mpl.use("agg")
STATIC = Path(__file__).resolve().parents[1] / "_static"
PENALTIES = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)


def simulated():
    """Return cells of three types that two batches hold in unlike shares."""
    both = sv.datasets.synthetic_counts(
        1600, 60, n_types=3, n_batches=2, library_size=5000, inverse_dispersion=10, seed=1
    )
    share = both.obs["cell_type"].map({"type_0": 0.85, "type_1": 0.5, "type_2": 0.15}).astype(float)
    first = (both.obs["batch"] == "batch_0").to_numpy()
    return both[np.random.default_rng(0).random(both.n_obs) < np.where(first, share, 1 - share)].copy()


def main():
    adata = simulated()
    sv.SCVAE.setup_anndata(adata, batch_key="batch")
    batch = torch.from_numpy(adata.obs["batch"].cat.codes.to_numpy(dtype=np.int64))
    rows = []
    for penalty in PENALTIES:
        model = sv.SCVAE(adata, n_hidden=32, n_latent=3)
        model.train(batch_penalty=penalty, max_steps=300, enable_progress_bar=False)
        latent = model.get_latent_representation()
        right = cross_val_score(KNeighborsClassifier(15), latent, adata.obs["cell_type"], cv=5).mean()
        rows.append((float(batch_dependence(torch.from_numpy(latent), batch)), model.get_elbo(n_samples=20), right))
        print(penalty, *rows[-1], flush=True)
    truth = float(batch_dependence(torch.from_numpy(adata.obsm["latent"]), batch))
    print("true states", truth)
    dependence, elbo, right = np.array(rows).T
    panels = (
        (dependence, "Dependence of z on the batch", "What is left of the batch"),
        (elbo - elbo[0], "ELBO, difference (nats per cell)", "What it costs the model"),
        (right, "Types told by neighbours", "What it costs the types"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(9.4, 3.1), layout="constrained")
    places = np.arange(len(PENALTIES))
    for panel, (values, label, title) in zip(axes, panels, strict=True):
        panel.plot(places, values, "o-", color="#0072B2")
        panel.set_xticks(places, [f"{penalty:g}" for penalty in PENALTIES])
        panel.set(xlabel="batch_penalty (nats per cell)", ylabel=label)
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(truth, color="#7a7a7a", linewidth=0.9, linestyle=":", label="true states")
    axes[0].legend(frameon=False, fontsize=8.5)
    figure.savefig(STATIC / "integration.png", dpi=200)


if __name__ == "__main__":
    main()
