"""Realised false discovery rate, power and speed of differential expression, beside scvi-tools and scanpy's Wilcoxon.

Cells of one type are split in two at random. As they are, no gene differs. Then one gene in ten is given a known fold
change: its counts are thinned binomially in one half or, for every other such gene, in the other. Both packages are
trained on these cells with their own defaults, without knowing the halves, and compare the halves in mode "change" at
delta=0.25 and fdr_target=0.05; Wilcoxon's test is scanpy's, tie-corrected, by Benjamini and Hochberg at 0.05. It asks
for any difference, not for one above a threshold, and so does a further row of ours, with delta=0. Realised are the
share of flagged genes that were left alone, and the share of the thinned ones that are flagged; "power at 5%" lets
each method rank the genes and goes down its list as long as the realised rate is at most 5%. Speed: ten groups of
pbmc3k, each against all other cells, one thread. Each finished row is a line in the results file, and an interrupted
benchmark goes on where it stopped.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/differential_expression.py             # some hours on two cores
    SCVAE_EXT_DATA=/path/to/data python benchmarks/differential_expression.py --tools scvae-ext wilcoxon --seeds 0
    python benchmarks/differential_expression.py --smoke                                  # synthetic counts, seconds
    python benchmarks/differential_expression.py --table                                  # only print what is there
"""

import argparse
import json
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from labelled_datasets import DATA

RESULTS = Path(__file__).parent / "results" / "differential_expression.jsonl"
# File, cell type, share of the cells in the first half.
SETTINGS = {
    "pbmc3k CD14+ Mono": ("pbmc3k", "CD14+ Mono", 0.5),
    "pbmc3k Naive CD4 T": ("pbmc3k", "Naive CD4 T", 0.2),
    "kang CD4 T": ("kang_ifnb_2000", "CD4 T cells", 0.5),
    "cbmc NK": ("citeseq_cbmc_2000genes", "NK", 0.5),
}
EFFECTS = (0.0, 0.5, 1.0, 2.0)
SHARE_PLANTED = 0.1
MOST_GENES = 2000
TARGET = 0.05
# The model of the last row, which both rows of ours share.
LAST_MODEL: dict[str, object] = {}


def cells_of_one_type(setting: str) -> ad.AnnData:
    """Read the cells of a type, with the genes that most of them express."""
    name, cell_type, _ = SETTINGS[setting]
    path = DATA / f"{name}.h5ad"
    if not path.exists():
        raise SystemExit(f"{path} is missing: set SCVAE_EXT_DATA to the folder that holds it")
    adata = ad.read_h5ad(path)
    counts = sp.csr_matrix(adata.X)[(adata.obs["cell_type"].astype(str) == cell_type).to_numpy()]
    detected = counts.getnnz(axis=0) / counts.shape[0]
    genes = np.sort(np.argsort(-detected, kind="stable")[:MOST_GENES])
    genes = genes[detected[genes] > 0.01]
    return ad.AnnData(counts[:, genes].astype(np.float32), var=pd.DataFrame(index=adata.var_names[genes]))


def plant(adata: ad.AnnData, effect: float, share: float, seed: int) -> ad.AnnData:
    """Split cells in two, and thin the counts of some genes in one half; ``var["changed"]`` says which."""
    rng = np.random.default_rng(seed)
    one = np.zeros(adata.n_obs, dtype=bool)
    one[rng.permutation(adata.n_obs)[: round(share * adata.n_obs)]] = True
    chosen = rng.permutation(adata.n_vars)[: round(SHARE_PLANTED * adata.n_vars)]
    counts = sp.csc_matrix(adata.X)
    if effect > 0:
        for place, gene in enumerate(chosen):
            entries = slice(counts.indptr[gene], counts.indptr[gene + 1])
            thinned = one[counts.indices[entries]] == (place % 2 == 0)
            values = counts.data[entries]
            values[thinned] = rng.binomial(values[thinned].astype(int), 2.0**-effect)
    counts = counts.tocsr()
    counts.eliminate_zeros()
    changed = np.zeros(adata.n_vars, dtype=bool)
    changed[chosen] = effect > 0
    obs = pd.DataFrame({"half": pd.Categorical(np.where(one, "one", "two"))}, index=adata.obs_names)
    return ad.AnnData(counts, obs=obs, var=adata.var.assign(changed=changed))


def by_scvae_ext(
    adata: ad.AnnData, seed: int, quick: bool, delta: float = 0.25
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return how likely each gene is to differ, whether it is flagged, and seconds of the comparison."""
    import scvae_ext as sv

    of = (seed, quick, adata.shape, float(adata.X.sum()))
    if LAST_MODEL.get("of") != of:
        sv.SCVAE.setup_anndata(adata)
        model = sv.SCVAE(adata, seed=seed)
        model.train(accelerator="cpu", enable_progress_bar=False, max_steps=50 if quick else None)
        LAST_MODEL.update(of=of, model=model)
    start = time.perf_counter()
    table = LAST_MODEL["model"].differential_expression(
        groupby="half", group1="one", group2="two", delta=delta, fdr_target=TARGET
    )
    seconds = time.perf_counter() - start
    table = table.loc[adata.var_names]
    return table["proba_de"].to_numpy(), table[f"is_de_fdr_{TARGET}"].to_numpy(), seconds


def by_scvae_ext_any(adata: ad.AnnData, seed: int, quick: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """As above, for any difference, which is what Wilcoxon's test asks for."""
    return by_scvae_ext(adata, seed, quick, delta=0.0)


def by_decoded_values(adata: ad.AnnData, seed: int, quick: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """As above, by a t-test on decoded expression, to see what the ratio to the counts is for."""
    from scipy.stats import false_discovery_control, ttest_ind

    import scvae_ext as sv

    sv.SCVAE.setup_anndata(adata)
    model = sv.SCVAE(adata, seed=seed)
    model.train(accelerator="cpu", enable_progress_bar=False, max_steps=50 if quick else None)
    start = time.perf_counter()
    decoded = np.log(model.get_normalized_expression(n_samples=1, return_numpy=True, key_added=None).astype(float))
    one = (adata.obs["half"] == "one").to_numpy()
    test = ttest_ind(decoded[one], decoded[~one], equal_var=False)
    seconds = time.perf_counter() - start
    return np.abs(test.statistic), false_discovery_control(test.pvalue) <= TARGET, seconds


def by_scvi(adata: ad.AnnData, seed: int, quick: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """As above, by scvi-tools."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata)
    model.train(accelerator="cpu", enable_progress_bar=False, max_epochs=2 if quick else None)
    start = time.perf_counter()
    table = model.differential_expression(
        groupby="half", group1="one", group2="two", mode="change", delta=0.25, fdr_target=TARGET, silent=True
    )
    seconds = time.perf_counter() - start
    table = table.loc[adata.var_names]
    return table["proba_de"].to_numpy(), table[f"is_de_fdr_{TARGET}"].to_numpy(), seconds


def by_wilcoxon(adata: ad.AnnData, seed: int, quick: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """As above, by scanpy's rank test on log-normalised counts."""
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    start = time.perf_counter()
    sc.tl.rank_genes_groups(normalised, "half", groups=["one"], reference="two", method="wilcoxon", tie_correct=True)
    seconds = time.perf_counter() - start
    table = sc.get.rank_genes_groups_df(normalised, "one").set_index("names").loc[adata.var_names]
    # Ranked by the score, which does not underflow as a p-value does.
    return table["scores"].abs().to_numpy(), (table["pvals_adj"] <= TARGET).to_numpy(), seconds


TOOLS = {
    "scvae-ext": by_scvae_ext,
    "scvae-ext, delta=0": by_scvae_ext_any,
    "wilcoxon": by_wilcoxon,
    "decoded t-test": by_decoded_values,
    "scvi-tools": by_scvi,
}


def power_at_target(score: np.ndarray, changed: np.ndarray) -> float:
    """Return the share of changed genes in the longest list whose realised false discovery rate meets the target."""
    order = np.argsort(-score, kind="stable")
    found = changed[order]
    allowed = np.flatnonzero(np.cumsum(~found) <= TARGET * np.arange(1, len(found) + 1))
    return float(found[: allowed[-1] + 1].sum() / changed.sum()) if len(allowed) else 0.0


def measure(adata: ad.AnnData, tool: str, seed: int, quick: bool = False) -> dict[str, object]:
    """Run one tool on one dataset."""
    score, flagged, seconds = TOOLS[tool](adata.copy(), seed, quick)
    changed = adata.var["changed"].to_numpy()
    row: dict[str, object] = {
        "n_cells": adata.n_obs,
        "n_genes": adata.n_vars,
        "n_flagged": int(flagged.sum()),
        "n_false": int((flagged & ~changed).sum()),
        "seconds": round(seconds, 3),
    }
    if changed.any():
        row |= {
            "power": round(float((flagged & changed).sum() / changed.sum()), 4),
            "power_at_5": round(power_at_target(score, changed), 4),
        }
    return row


def speed(repeats: int) -> list[dict[str, object]]:
    """Time ten groups against the rest, the tools in turn, each in the mode "change"."""
    import scvi
    import torch
    from labelled_datasets import LABELLED

    import scvae_ext as sv

    torch.set_num_threads(1)
    adata = LABELLED["pbmc3k"].load()
    scvi.model.SCVI.setup_anndata(adata)
    theirs = scvi.model.SCVI(adata)
    theirs.train(max_epochs=5, accelerator="cpu", enable_progress_bar=False)
    sv.SCVAE.setup_anndata(adata)
    ours = sv.SCVAE(adata)
    ours.train(max_epochs=5, accelerator="cpu", enable_progress_bar=False)
    calls = {
        "scvae-ext": lambda: ours.differential_expression(groupby="cell_type", mode="change"),
        "scvi-tools": lambda: theirs.differential_expression(groupby="cell_type", mode="change", silent=True),
    }
    calls["scvae-ext"]()
    rows = []
    for repeat in range(repeats):
        for tool, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            table = call()
            row = {"part": "speed", "tool": tool, "seed": repeat, "n_groups": table["group1"].nunique()}
            rows.append(row | {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
    return rows


def table(rows: pd.DataFrame) -> str:
    """Return the tables in Markdown."""
    lines = []
    if "setting" in rows:
        lines += [
            "| Cells | Change (log2) | Tool | Runs | Flagged | False discovery rate | Power | Power at 5% |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for (setting, effect, tool), runs in rows.dropna(subset=["setting"]).groupby(["setting", "effect", "tool"]):
            size = f"{setting} ({runs['n_cells'].iloc[0]:.0f} x {runs['n_genes'].iloc[0]:.0f})"
            rate = runs["n_false"].sum() / max(runs["n_flagged"].sum(), 1)
            cells = [size, f"{effect:g}" if effect else "none", tool, len(runs), f"{runs['n_flagged'].mean():.1f}"]
            cells += ["-"] * 3 if not effect else [f"{rate:.3f}", *(f"{runs[key].mean():.3f}" for key in POWER)]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    if "wall" in rows:
        times = rows.dropna(subset=["wall"])
        lines += ["", "| Tool | Groups | Wall (s) | CPU (s) |", "|---|---|---|---|"]
        for tool, runs in times.groupby("tool"):
            wall, cpu = runs["wall"].median(), runs["cpu"].median()
            lines.append(f"| {tool} | {runs['n_groups'].iloc[0]:.0f} | {wall:.2f} | {cpu:.2f} |")
        wide = times.pivot(index="seed", columns="tool", values="cpu")
        if {"scvi-tools", "scvae-ext"} <= set(wide):
            lines += ["", f"Median ratio of CPU time: {(wide['scvi-tools'] / wide['scvae-ext']).median():.1f}"]
    return "\n".join(lines)


POWER = ("power", "power_at_5")


def smoke() -> None:
    """Run every tool that is installed on tiny synthetic data."""
    from scvae_ext.datasets import synthetic_counts

    adata = plant(synthetic_counts(150, 60, n_types=1), 2.0, 0.5, 0)
    rows = []
    for tool in TOOLS:
        try:
            rows.append({"setting": "synthetic", "effect": 2.0, "tool": tool, **measure(adata, tool, 0, quick=True)})
        except ImportError as error:
            print(f"{tool} left out: {error}")
    print(table(pd.DataFrame(rows)))


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--effects", nargs="+", type=float, default=list(EFFECTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--speed", type=int, default=0, metavar="REPEATS", help="time the comparison instead")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="tiny synthetic data, no file written")
    parser.add_argument("--table", action="store_true", help="print the tables of the finished runs and stop")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.smoke:
        smoke()
        return
    about = {"python": platform.python_version(), "scvae_ext": version("scvae-ext")}

    def write(row: dict[str, object]) -> None:
        print(json.dumps(row), flush=True)
        arguments.results.parent.mkdir(exist_ok=True)
        with arguments.results.open("a") as stream:
            stream.write(json.dumps(row | about) + "\n")

    def finished() -> pd.DataFrame:
        return pd.read_json(arguments.results, lines=True) if arguments.results.exists() else pd.DataFrame()

    if not arguments.table and arguments.speed:
        for row in speed(arguments.speed):
            write(row)
    elif not arguments.table:
        keys = ["setting", "effect", "seed", "tool"]
        for seed in arguments.seeds:
            for setting in arguments.settings:
                for effect in arguments.effects:
                    for tool in arguments.tools:
                        rows, wanted = finished(), (setting, effect, seed, tool)
                        if len(rows) and set(keys) <= set(rows) and (rows[keys] == wanted).all(axis=1).any():
                            continue
                        adata = plant(cells_of_one_type(setting), effect, SETTINGS[setting][2], seed)
                        write(dict(zip(keys, wanted, strict=True)) | measure(adata, tool, seed))
    print(table(finished()))


if __name__ == "__main__":
    main()
