"""What remedies of posterior collapse cost on real cells: the table and the picture of the page on posterior collapse.

Run: SCVAE_EXT_DATA=/path/to/data python docs/figures/posterior_collapse.py [--seeds 0] [--table]
"""

import argparse
import json
import os
import time
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import scvae_ext as sv

DATASET = "pbmc_3tech_1767genes"
ROWS = Path(__file__).with_suffix(".jsonl")
PICTURE = Path(__file__).parent.parent / "_static" / "posterior_collapse_remedies.png"
# Options of the model, options of training.
REMEDIES = {
    "default": ({}, {}),
    "no warm-up": ({}, {"kl_warmup": 0.0}),
    "beta = 0.5": ({}, {"max_kl_weight": 0.5}),
    "beta = 2": ({}, {"max_kl_weight": 2.0}),
    "free_bits = 0.2": ({}, {"free_bits": 0.2}),
    'prior="mixture"': ({"prior": "mixture"}, {}),
    'prior="vamp"': ({"prior": "vamp"}, {}),
    "n_samples = 5": ({}, {"n_samples": 5}),
    'objective="iwae", n_samples = 5': ({}, {"objective": "iwae", "n_samples": 5}),
}
COLORS = ["#000000", "#999999", "#56B4E9", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00"]


def measure(adata: anndata.AnnData, name: str, seed: int) -> dict[str, object]:
    model_options, training_options = REMEDIES[name]
    model = sv.SCVAE(adata, seed=seed, **model_options)
    start = time.process_time()
    model.train(enable_progress_bar=False, **training_options)
    seconds = time.process_time() - start
    evidence = sv.diagnostics.evidence(model, n_samples=500, n_optimisation_steps=100)
    collapse = sv.diagnostics.posterior_collapse(model)
    return {
        "remedy": name,
        "seed": seed,
        "evidence": evidence.mean,
        "elbo": float(evidence.elbo.mean()),
        "n_active": collapse.n_active,
        "rate": collapse.rate,
        "mutual_information": collapse.mutual_information,
        "cpu_seconds": seconds,
        "kl": np.sort(collapse.kl)[::-1].tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--table", action="store_true", help="print the rows that there are as a table")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        adata = anndata.read_h5ad(Path(os.environ["SCVAE_EXT_DATA"]) / f"{DATASET}.h5ad")
        sv.SCVAE.setup_anndata(adata)
        for seed in arguments.seeds:
            for name in REMEDIES:
                row = measure(adata, name, seed)
                with ROWS.open("a") as file:
                    print(json.dumps(row), file=file)
                print({key: value for key, value in row.items() if key != "kl"}, flush=True)
    frame = pd.read_json(ROWS, lines=True)
    table = frame.drop(columns=["kl", "seed"]).groupby("remedy", sort=False).mean()
    table["cpu_seconds"] /= table.loc["default", "cpu_seconds"]
    print("| Remedy | Evidence | ELBO | Active | Rate | Mutual information | Time |\n|---|---|---|---|---|---|---|")
    for name, row in table.iterrows():
        print(
            f"| `{name}` | {row['evidence']:.2f} | {row['elbo']:.2f} | {row['n_active']:g} | {row['rate']:.2f} | "
            f"{row['mutual_information']:.2f} | {row['cpu_seconds']:.1f} |"
        )
    draw(frame[frame["seed"] == frame["seed"].min()])


def draw(frame: pd.DataFrame) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for (_, row), color in zip(frame.iterrows(), COLORS, strict=False):
        kl = np.maximum(row["kl"], 1e-4)
        axes.plot(
            np.arange(1, len(kl) + 1), kl, marker="o", markersize=4, linewidth=1.2, color=color, label=row["remedy"]
        )
    axes.set(yscale="log", xlabel="Latent dimension, by KL", ylabel="KL from the prior (nats per cell)")
    axes.set_title("Which dimensions does each remedy put to use?", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
