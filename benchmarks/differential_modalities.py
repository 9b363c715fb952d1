"""Proteins and peaks that differ between groups: what is flagged against what was planted, beside tests and scvi-tools.

Cells are split in two at random. As they are, nothing differs. Then some proteins or peaks are given a known change, by
binomial thinning of what was counted in one half or, for every other one, in the other half. Models are trained on
these cells by their own defaults, without knowing the halves, and compare them at a false discovery rate of 0.05.

``proteins``
    Cells of one type of the cord blood CITE-seq data (10 proteins), three of which are changed. ``less`` thins every
    protein of one half by 0.7 (log2) instead, as if its cells bound less antibody: nothing is to be flagged. Beside
    them Wilcoxon's test on counts, and on counts after the centred log ratio.
``peaks``
    900 simulated cells of three types (60 genes, 300 peaks, ``datasets.synthetic_counts``), of whose peaks 30 are
    changed, and ``less`` with 0.6 of the depth in one half; and bone marrow cells (500 cells, 561 peaks, 50 of the more
    common ones changed). Beside them Wilcoxon's test on what was found, and on that over the number of peaks of the
    cell.

Wilcoxon's test asks for any difference, ours for one above ``delta=0.25``; a further row of ours has ``delta=0``.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/differential_modalities.py    # some hours; goes on where it stopped
    python benchmarks/differential_modalities.py --smoke    # ours and the tests, on a few simulated cells
    python benchmarks/differential_modalities.py --table    # what is there
"""

import argparse
import json
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from labelled_datasets import DATA
from scipy.stats import false_discovery_control, mannwhitneyu

RESULTS = Path(__file__).parent / "results" / "differential_modalities.jsonl"
TARGET = 0.05
PROTEIN_TYPES = ("Naive CD4 T", "CD14+ Mono", "NK")
SETTINGS = (*PROTEIN_TYPES, "simulated peaks", "bone marrow peaks")
CHANGES = {"none": 0.0, "0.5": 0.5, "1": 1.0, "less": 0.7}
N_PLANTED = {"proteins": 3, "simulated peaks": 30, "bone marrow peaks": 50}


def load(setting: str, seed: int, smoke: bool) -> tuple[ad.AnnData, str]:
    """Return cells with a dense matrix of counts or of ones in ``obsm["features"]``, and the kind of the features."""
    import scvae_ext as sv

    if setting in PROTEIN_TYPES:
        if smoke:
            adata = sv.datasets.synthetic_counts(150, 30, n_proteins=10, seed=seed)
        else:
            adata = ad.read_h5ad(_file("citeseq_cbmc_2000genes"))
            adata = adata[(adata.obs["cell_type"] == setting).to_numpy()].copy()
        adata.obsm["features"] = adata.obsm["protein"].to_numpy().astype(int)
        return adata, "proteins"
    if setting == "simulated peaks" or smoke:
        adata = sv.datasets.synthetic_counts(200 if smoke else 900, 60, n_types=3, n_peaks=300, seed=seed)
    else:
        adata = ad.read_h5ad(_file("multiome_bmmc_neurips500"))
    peaks = adata.obsm["accessibility"]
    adata.obsm["features"] = ((peaks.toarray() if sp.issparse(peaks) else np.asarray(peaks)) > 0).astype(int)
    return adata, "peaks"


def _file(name: str) -> Path:
    path = DATA / f"{name}.h5ad"
    if not path.exists():
        raise SystemExit(f"{path} is missing: set SCVAE_EXT_DATA to the folder that holds it")
    return path


def plant(adata: ad.AnnData, kind: str, setting: str, change: str, seed: int) -> np.ndarray:
    """Split cells in two and thin features in place; return which were changed."""
    rng = np.random.default_rng(seed)
    one = rng.permutation(adata.n_obs) % 2 == 0
    adata.obs["half"] = pd.Categorical(np.where(one, "one", "two"))
    features, kept = adata.obsm["features"], share_kept(adata, 2.0 ** -CHANGES[change])
    changed = np.zeros(features.shape[1], dtype=bool)
    if change == "less":
        features[one] = rng.binomial(features[one], kept[one])
    elif change != "none":
        n_planted = N_PLANTED["proteins" if kind == "proteins" else setting]
        common = np.argsort(-(features > 0).mean(0), kind="stable")[: 4 * n_planted]
        chosen = rng.permutation(common)[:n_planted]
        changed[chosen] = True
        for place, feature in enumerate(chosen):
            thinned = one if place % 2 == 0 else ~one
            features[thinned, feature] = rng.binomial(features[thinned, feature], kept[thinned, feature])
    return changed


def share_kept(adata: ad.AnnData, factor: float) -> np.ndarray:
    """Return the probability to keep what was counted, so that its rate falls by a factor.

    A peak is found if there is one fragment at least, whose number falls by the factor; where rates are not known, as
    if they were small.
    """
    if "accessibility_rate" not in adata.obsm:
        return np.full(adata.obsm["features"].shape, factor)
    rate = adata.obs["accessibility_depth"].to_numpy()[:, None] * adata.obsm["accessibility_rate"].astype(float)
    return np.expm1(-factor * rate) / np.expm1(-rate)


def by_scvae_ext(adata: ad.AnnData, kind: str, seed: int, smoke: bool, delta: float = 0.25) -> np.ndarray:
    """Return which features are flagged."""
    import scvae_ext as sv

    steps = {"max_steps": 30} if smoke else {}
    asked = {"groupby": "half", "group1": "one", "group2": "two", "fdr_target": TARGET, "key_added": None}
    asked["delta"] = delta
    names = [f"feature_{i}" for i in range(adata.obsm["features"].shape[1])]
    adata.uns["names"] = np.array(names)
    if kind == "proteins":
        sv.CiteVAE.setup_anndata(adata, protein_expression_obsm_key="features", protein_names_uns_key="names")
        model = sv.CiteVAE(adata, seed=seed)
        model.train(accelerator="cpu", enable_progress_bar=False, **steps)
        table, flag = model.differential_protein_expression(**asked), f"is_de_fdr_{TARGET}"
    else:
        sv.MultiomeVAE.setup_anndata(adata, accessibility_obsm_key="features", peak_names_uns_key="names")
        model = sv.MultiomeVAE(adata, seed=seed)
        model.train(accelerator="cpu", enable_progress_bar=False, **steps)
        table, flag = model.differential_accessibility(**asked), "is_da_fdr"
    return table.loc[names, flag].to_numpy()


def by_scvae_ext_any(adata: ad.AnnData, kind: str, seed: int, smoke: bool) -> np.ndarray:
    """As above, for any difference, which is what the tests ask for."""
    return by_scvae_ext(adata, kind, seed, smoke, delta=0.0)


def by_scvi_tools(adata: ad.AnnData, kind: str, seed: int, smoke: bool) -> np.ndarray:
    """As above, by totalVI and MultiVI of scvi-tools."""
    import scvi

    scvi.settings.verbosity, scvi.settings.seed = 40, seed
    epochs = {"max_epochs": 2} if smoke else {}
    names = [f"feature_{i}" for i in range(adata.obsm["features"].shape[1])]
    asked = {"groupby": "half", "group1": "one", "group2": "two", "fdr_target": TARGET, "silent": True}
    with tempfile.TemporaryDirectory() as folder:
        if kind == "proteins":
            adata.obsm["proteins"] = pd.DataFrame(adata.obsm["features"], index=adata.obs_names, columns=names)
            scvi.model.TOTALVI.setup_anndata(adata, protein_expression_obsm_key="proteins")
            model = scvi.model.TOTALVI(adata)
            model.train(accelerator="cpu", enable_progress_bar=False, default_root_dir=folder, **epochs)
            table = model.differential_expression(**asked, mode="change", delta=0.25)
            return table.loc[[f"{name}_protein" for name in names], f"is_de_fdr_{TARGET}"].to_numpy()
        import mudata

        mudata.set_options(pull_on_update=False)
        obs = adata.obs[["half"]].copy()
        peaks = ad.AnnData(
            sp.csr_matrix(adata.obsm["features"], dtype=np.float32), obs=obs[[]].copy(), var=pd.DataFrame(index=names)
        )
        both = mudata.MuData({"rna": ad.AnnData(adata.X.copy(), obs=obs[[]].copy(), var=adata.var[[]]), "atac": peaks})
        both.obs = both.obs.join(obs)
        scvi.model.MULTIVI.setup_mudata(both, modalities={"rna_layer": "rna", "atac_layer": "atac"})
        model = scvi.model.MULTIVI(both)
        model.train(accelerator="cpu", enable_progress_bar=False, default_root_dir=folder, **epochs)
        table = model.differential_accessibility(**asked, mode="change")
        return table.loc[names, "is_da_fdr"].to_numpy(dtype=bool)


def _by_wilcoxon(values: np.ndarray, adata: ad.AnnData) -> np.ndarray:
    one = (adata.obs["half"] == "one").to_numpy()
    return false_discovery_control(mannwhitneyu(values[one], values[~one], axis=0).pvalue) <= TARGET


def by_wilcoxon(adata: ad.AnnData, kind: str, seed: int, smoke: bool) -> np.ndarray:
    """As above, by Wilcoxon's test on what was counted, Benjamini and Hochberg."""
    return _by_wilcoxon(adata.obsm["features"], adata)


def by_normalised_wilcoxon(adata: ad.AnnData, kind: str, seed: int, smoke: bool) -> np.ndarray:
    """As above, on the centred log ratio of proteins, or on peaks over their number in the cell."""
    values = adata.obsm["features"].astype(float)
    if kind == "proteins":
        logs = np.log1p(values)
        return _by_wilcoxon(logs - logs.mean(1, keepdims=True), adata)
    return _by_wilcoxon(values / np.maximum(values.sum(1, keepdims=True), 1), adata)


TOOLS = {
    "scvae-ext": by_scvae_ext,
    "scvae-ext, delta=0": by_scvae_ext_any,
    "wilcoxon": by_wilcoxon,
    "wilcoxon, normalised": by_normalised_wilcoxon,
    "scvi-tools": by_scvi_tools,
}


def measure(setting: str, change: str, tool: str, seed: int, smoke: bool = False) -> dict[str, object]:
    """Run one tool on one dataset."""
    adata, kind = load(setting, seed, smoke)
    changed = plant(adata, kind, setting, change, seed)
    start = time.perf_counter()
    flagged = TOOLS[tool](adata, kind, seed, smoke)
    return {
        "n_cells": adata.n_obs,
        "n_features": len(changed),
        "n_changed": int(changed.sum()),
        "n_true": int((flagged & changed).sum()),
        "n_false": int((flagged & ~changed).sum()),
        "seconds": round(time.perf_counter() - start, 2),
    }


def table(rows: pd.DataFrame) -> str:
    """Return sums over the runs of each setting, as Markdown."""
    lines = [
        "| cells | change (log2) | tool | runs | flagged wrongly | found | s |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for setting, of_setting in rows.groupby("setting", sort=False):
        for change in CHANGES:
            for tool in TOOLS:
                runs = of_setting[(of_setting["change"] == change) & (of_setting["tool"] == tool)]
                if runs.empty:
                    continue
                flagged, changed = (runs["n_true"] + runs["n_false"]).sum(), runs["n_changed"].sum()
                wrong = f"{runs['n_false'].sum()} of {flagged}" if flagged else "none flagged"
                found = f"{runs['n_true'].sum()} of {changed}" if changed else "-"
                seconds = runs["seconds"].mean()
                lines.append(f"| {setting} | {change} | {tool} | {len(runs)} | {wrong} | {found} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="ours and the tests on simulated cells, no file written")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.smoke:
        rows = [
            {"setting": setting, "change": "1", "tool": tool, **measure(setting, "1", tool, 0, smoke=True)}
            for setting in ("NK", "simulated peaks")
            for tool in ("scvae-ext", "wilcoxon", "wilcoxon, normalised")
        ]
        print(table(pd.DataFrame(rows)))
        return
    about = {"scvae_ext": version("scvae-ext")}
    keys = ["setting", "change", "seed", "tool"]
    for seed in [] if arguments.table else arguments.seeds:
        for setting in arguments.settings:
            for change in arguments.changes:
                for tool in arguments.tools:
                    wanted = (setting, change, seed, tool)
                    done = _finished(arguments.results)
                    if len(done) and (done[keys] == wanted).all(axis=1).any():
                        continue
                    row = dict(zip(keys, wanted, strict=True)) | measure(setting, change, tool, seed) | about
                    print(json.dumps(row), flush=True)
                    with arguments.results.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
    print(table(_finished(arguments.results)))


def _finished(results: Path) -> pd.DataFrame:
    return pd.read_json(results, lines=True, dtype={"change": str}) if results.exists() else pd.DataFrame()


if __name__ == "__main__":
    main()
