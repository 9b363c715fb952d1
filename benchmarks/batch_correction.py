"""Fold changes where groups are unevenly spread over batches: batch_correction=True, beside scvi-tools.

1,200 simulated cells of 200 genes, half of them in each of two batches that differ by a random factor of each gene. Of
two groups, one has half or 85 % of its cells in the second batch, the other half or 15 %; one gene in ten differs
between them by 2.8 times, up or down. ``dropout`` sets half of the counts of the second batch to zero, and is fitted by
``zinb``, the rest by ``nb``. Models are trained by their defaults with the batch as covariate, and the groups compared
with batch_correction=True, at delta=0.25 and a false discovery rate of 0.05. Figures are the slope of ``lfc_mean`` on
the true log2 fold change over the genes that differ, the share of these whose 90 % interval holds it, and how many
genes are flagged rightly and wrongly.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    python benchmarks/batch_correction.py            # half an hour; goes on where it stopped
    python benchmarks/batch_correction.py --smoke    # ours, on a few cells
    python benchmarks/batch_correction.py --table    # what is there
"""

import argparse
import json
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results" / "batch_correction.jsonl"
ASKED = {"groupby": "group", "group1": "a", "group2": "b", "batch_correction": True, "delta": 0.25, "fdr_target": 0.05}
SHARES = (0.5, 0.85)
DROPOUT = (False, True)
LEVEL = 0.9


def simulate(share: float, dropout: bool, seed: int, n_cells: int = 1200, n_genes: int = 200) -> ad.AnnData:
    """Return counts; ``var["change"]`` is the true log2 fold change of shares of expression, averaged over batches."""
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(0, 1.2, n_genes))
    base /= base.sum()
    second = rng.random(n_cells) < 0.5
    in_a = rng.random(n_cells) < np.where(second, share, 1 - share)
    of_batch = np.exp(rng.normal(0, 0.7, n_genes))
    change = np.where(rng.random(n_genes) < 0.1, rng.choice([-1.5, 1.5], n_genes), 0.0)
    expression = base * np.where(second[:, None], of_batch, 1) * np.where(in_a[:, None], 2.0**change, 1)
    expression /= expression.sum(1, keepdims=True)

    def mean(factor: np.ndarray) -> np.ndarray:
        batches = [base * effect * factor for effect in (1.0, of_batch)]
        return np.mean([batch / batch.sum() for batch in batches], axis=0)

    depth = rng.lognormal(np.log(1500), 0.4, n_cells)[:, None]
    counts = rng.poisson(depth * expression * rng.gamma(3.0, 1 / 3, expression.shape))
    if dropout:
        counts = counts * (rng.random(counts.shape) > np.where(second[:, None], 0.5, 0.0))
    truth = np.log2(mean(2.0**change) / mean(np.ones(n_genes)))
    return ad.AnnData(
        counts.astype(np.float32),
        obs=pd.DataFrame(
            {"group": pd.Categorical(np.where(in_a, "a", "b")), "batch": pd.Categorical(np.where(second, "2", "1"))},
            index=[f"cell_{place}" for place in range(n_cells)],
        ),
        var=pd.DataFrame({"change": truth, "differs": change != 0}, index=[f"gene_{gene}" for gene in range(n_genes)]),
    )


def by_scvae_ext(adata: ad.AnnData, likelihood: str, seed: int, smoke: bool) -> pd.DataFrame:
    """Return the table of the comparison with the ends of the intervals."""
    import scvae_ext as sv

    sv.SCVAE.setup_anndata(adata, batch_key="batch")
    model = sv.SCVAE(adata, gene_likelihood=likelihood, seed=seed)
    model.train(accelerator="cpu", enable_progress_bar=False, max_steps=60 if smoke else None)
    table = model.differential_expression(**ASKED, cred_interval_lvls=[LEVEL], key_added=None)
    ends = {f"lfc_confidence_interval_{LEVEL}_{end}": end for end in ("min", "max")}
    return table.rename(columns=ends)


def by_scvi_tools(adata: ad.AnnData, likelihood: str, seed: int, smoke: bool) -> pd.DataFrame:
    """As above, by scvi-tools."""
    import scvi

    scvi.settings.verbosity, scvi.settings.seed = 40, seed
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata, gene_likelihood=likelihood)
    model.train(accelerator="cpu", enable_progress_bar=False, max_epochs=2 if smoke else None)
    table = model.differential_expression(**ASKED, mode="change", silent=True, cred_interval_lvls=[LEVEL])
    ends = {f"lfc_confidence_interval_{LEVEL}_{end}": end for end in ("min", "max")}
    return table.rename(columns=ends)


TOOLS = {"scvae-ext": by_scvae_ext, "scvi-tools": by_scvi_tools}


def measure(share: float, dropout: bool, tool: str, seed: int, smoke: bool = False) -> dict[str, object]:
    """Run one tool on one dataset."""
    adata = simulate(share, dropout, seed, **({"n_cells": 200, "n_genes": 80} if smoke else {}))
    found = TOOLS[tool](adata.copy(), "zinb" if dropout else "nb", seed, smoke).loc[adata.var_names]
    truth, differs = adata.var["change"].to_numpy(), adata.var["differs"].to_numpy()
    flagged = found["is_de_fdr_0.05"].to_numpy(bool)
    holds = (found["min"] <= truth) & (truth <= found["max"])
    return {
        "slope": round(float(np.polyfit(truth[differs], found["lfc_mean"].to_numpy()[differs], 1)[0]), 3),
        "held": round(float(holds[differs].mean()), 3),
        "n_differ": int(differs.sum()),
        "n_true": int((flagged & differs).sum()),
        "n_false": int((flagged & ~differs).sum()),
    }


def table(rows: pd.DataFrame) -> str:
    """Return means and sums over the runs of each setting, as Markdown."""
    lines = [
        "| dropout | share | tool | runs | slope (min to max) | truth in 90 % interval | found | flagged wrongly |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for (dropout, share, tool), runs in rows.groupby(["dropout", "share", "tool"]):
        slope = f"{runs['slope'].mean():.2f} ({runs['slope'].min():.2f} to {runs['slope'].max():.2f})"
        flagged = runs["n_true"].sum() + runs["n_false"].sum()
        wrong = f"{runs['n_false'].sum()} of {flagged}" if flagged else "none flagged"
        lines.append(
            f"| {'yes' if dropout else 'no'} | {share} | {tool} | {len(runs)} | {slope} | {runs['held'].mean():.2f} | "
            f"{runs['n_true'].sum()} of {runs['n_differ'].sum()} | {wrong} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="ours on a few cells, no file written")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.smoke:
        wanted = [(0.85, dropout, "scvae-ext", 0) for dropout in DROPOUT]
    else:
        wanted = [
            (share, dropout, tool, seed)
            for seed in arguments.seeds
            for dropout in DROPOUT
            for share in SHARES
            for tool in arguments.tools
        ]
    path, keys = arguments.results, ("share", "dropout", "tool", "seed")
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() and not arguments.smoke else []
    done = {tuple(row[key] for key in keys) for row in rows}
    for each in [] if arguments.table else wanted:
        if each in done:
            continue
        row = {**dict(zip(keys, each, strict=True)), **measure(*each, smoke=arguments.smoke)}
        row["scvae_ext" if each[2] != "scvi-tools" else "scvi_tools"] = version(each[2])
        rows.append(row)
        if not arguments.smoke:
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
