"""Figure of docs/analysis/integration.md: what the penalty on batches costs, from the results of the benchmark.

python docs/figures/integration.py
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

mpl.use("agg")
ROOT = Path(__file__).resolve().parents[2]
PENALTIES = {"scvae-ext": "0", "scvae-ext, penalty 30": "30", "scvae-ext, penalty 300": "300"}
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def main():
    rows = pd.read_json(ROOT / "benchmarks" / "results" / "integration.jsonl", lines=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    for color, (name, of) in zip(COLORS, rows.groupby("dataset", sort=False), strict=False):
        means = of.groupby("tool")[["batch", "bio", "elbo"]].mean().reindex(list(PENALTIES)).dropna()
        left.plot(means["batch"], means["bio"], "o-", color=color, label=name)
        for tool, row in means.iterrows():
            left.annotate(
                PENALTIES[tool], (row["batch"], row["bio"]), (4, 4), textcoords="offset points", fontsize=8, color=color
            )
        places = [list(PENALTIES).index(tool) for tool in means.index]
        right.plot(places, means["elbo"] - means["elbo"].iloc[0], "o-", color=color)
    left.set(xlabel="Batches mixed (mean of five figures)", ylabel="Types kept (mean of five figures)")
    left.set_title("Moved by the penalty (at the points)", fontsize=10)
    right.axhline(0, color="black", linewidth=0.9, linestyle=":")
    right.set_xticks(range(len(PENALTIES)), list(PENALTIES.values()))
    right.set(xlabel="batch_penalty (nats per cell)", ylabel="Held-out ELBO less that of 0 (nats per cell)")
    right.set_title("What it costs", fontsize=10)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs" / "_static" / "integration.png", dpi=200)


if __name__ == "__main__":
    main()
