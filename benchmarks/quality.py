"""Held-out ELBO, evidence and agreement with known cell types, beside scvi-tools with its own defaults.

Both packages get the same cells, the same genes and the same architecture (128 hidden units, one layer, ten latent
dimensions) and otherwise their own defaults; one tenth of the cells is seen by neither, not even for early stopping.
Each finished run is a line in the results file, so that an interrupted benchmark goes on where it stopped.
Neighbours and Leiden draw random numbers, and the ARI of one latent space differs by up to 0.1 with them: with
``--clusterings 6``, ARI and NMI are means over six seeds of theirs.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/quality.py                    # everything, many hours on two cores
    SCVAE_EXT_DATA=/path/to/data python benchmarks/quality.py --datasets pbmc3k --seeds 0 --likelihoods nb
    python benchmarks/quality.py --datasets pbmc_3tech_1767genes --likelihoods zinb --seeds 0 1 2 3 4 5 6 \\
        --clusterings 6 --results benchmarks/results/quality_clusterings.jsonl
    python benchmarks/quality.py --table                                          # only print what is there
"""

import argparse
import json
import platform
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from labelled_datasets import LABELLED

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
TRAINED = Path(__file__).parent / "results" / "trained"  # scores and latents, kept until their row is written
N_ELBO_SAMPLES = 20
N_EVIDENCE_SAMPLES = 1000


def fit_scvi(train, everything, held_out, batch_key, likelihood, seed):
    """Train scvi-tools by its defaults and score the held-out cells by its own methods."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(train, batch_key=batch_key)
    model = scvi.model.SCVI(train, n_hidden=128, n_latent=10, n_layers=1, gene_likelihood=likelihood)
    model.train(accelerator="cpu", enable_progress_bar=False)
    elbo = np.mean([float(model.get_elbo(held_out)) for _ in range(N_ELBO_SAMPLES)])
    evidence = model.get_marginal_ll(held_out, n_mc_samples=N_EVIDENCE_SAMPLES, return_mean=False).numpy().mean()
    return elbo, float(evidence), model.get_latent_representation(everything)


def fit_scvae_ext(train, everything, held_out, batch_key, likelihood, seed):
    """Train scvae_ext by its defaults and score the held-out cells."""
    import scvae_ext as sv

    sv.SCVAE.setup_anndata(train, batch_key=batch_key)
    model = sv.SCVAE(train, n_hidden=128, n_latent=10, n_layers=1, gene_likelihood=likelihood, seed=seed)
    model.train(accelerator="cpu", enable_progress_bar=False, seed=seed)
    elbo = model.get_elbo(held_out, n_samples=N_ELBO_SAMPLES)
    evidence = model.get_marginal_ll(held_out, n_mc_samples=N_EVIDENCE_SAMPLES)
    return elbo, evidence, model.get_latent_representation(everything, key_added=None)


TOOLS = {"scvi-tools": fit_scvi, "scvae-ext": fit_scvae_ext}


def agreement(latent: np.ndarray, labels: pd.Series, n_clusterings: int = 1) -> dict[str, float]:
    """ARI and NMI of the best Leiden clustering over resolutions (as scib has it), silhouette by type in [0, 1].

    ARI and NMI are means over seeds of neighbours and clustering.
    """
    import anndata as ad
    from sklearn.metrics import silhouette_score

    known = ~labels.astype(str).isin(["unlabelled", "unknown", "nan"]).to_numpy()
    space = ad.AnnData(np.asarray(latent)[known])
    truth = labels[known].astype(str).to_numpy()
    found = pd.DataFrame([best_clustering(space, truth, seed) for seed in range(n_clusterings)])
    return {**found.mean().to_dict(), "asw": (silhouette_score(space.X, truth) + 1) / 2}


def best_clustering(space, truth: np.ndarray, seed: int) -> dict[str, float]:
    """ARI and NMI of the clustering with the best NMI over resolutions."""
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    sc.pp.neighbors(space, use_rep="X", random_state=seed)
    best = {"ari": -1.0, "nmi": -1.0}
    for resolution in np.arange(0.1, 2.05, 0.1):
        sc.tl.leiden(space, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        nmi = normalized_mutual_info_score(truth, space.obs["leiden"])
        if nmi > best["nmi"]:
            best = {"ari": adjusted_rand_score(truth, space.obs["leiden"]), "nmi": nmi}
    return best


def run(tool: str, name: str, likelihood: str, seed: int, n_clusterings: int) -> dict[str, object]:
    """Train one tool on one dataset and return a row of figures."""
    dataset = LABELLED[name]
    everything = dataset.load()
    # Training takes most of the time: what it gave is on disk before the clustering, which may fail.
    trained = TRAINED / f"{tool}-{name}-{likelihood}-{seed}.npz"
    if not trained.exists():
        train, held_out = dataset.split(everything, seed)
        elbo, evidence, latent = TOOLS[tool](train, everything, held_out, dataset.batch_key, likelihood, seed)
        trained.parent.mkdir(parents=True, exist_ok=True)
        np.savez(trained, elbo=elbo, evidence=evidence, latent=latent)
    with np.load(trained) as saved:
        elbo, evidence, latent = float(saved["elbo"]), float(saved["evidence"]), saved["latent"]
    return {
        "dataset": name,
        "likelihood": likelihood,
        "seed": seed,
        "tool": tool,
        "elbo": elbo,
        "evidence": evidence,
        **agreement(latent, everything.obs[dataset.labels_key], n_clusterings),
        "clusterings": n_clusterings,
        "version": version(tool),
        "torch": version("torch"),
        "python": platform.python_version(),
    }


def finished() -> pd.DataFrame:
    """Return the rows of the results file."""
    return pd.read_json(RESULTS, lines=True) if RESULTS.exists() else pd.DataFrame()


def table(rows: pd.DataFrame) -> str:
    """Means over the seeds that both tools finished, ours beside the peer's, and the paired difference, as Markdown."""
    figures = ["elbo", "evidence", "ari", "nmi", "asw"]
    if set(rows["tool"]) != set(TOOLS):
        return "one of the two packages has no finished run yet"
    wide = rows.pivot_table(index=["dataset", "likelihood", "seed"], columns="tool", values=figures).dropna()
    lines = [
        "| dataset | likelihood | seeds | ELBO | scvi-tools | difference | evidence | scvi-tools | difference "
        "| ARI | scvi-tools | NMI | scvi-tools | ASW | scvi-tools |",
        "|---|---|---|" + "---:|" * 12,
    ]
    for (dataset, likelihood), of_seeds in wide.groupby(level=["dataset", "likelihood"]):
        cells = []
        for figure in figures:
            ours, peer = (of_seeds[figure][tool] for tool in ("scvae-ext", "scvi-tools"))
            digits = 1 if figure in ("elbo", "evidence") else 2
            cells += [f"{ours.mean():.{digits}f}", f"{peer.mean():.{digits}f}"]
            if figure in ("elbo", "evidence"):
                difference = ours - peer
                spread = f" ± {difference.std():.1f}" if len(of_seeds) > 1 else ""
                cells.append(f"{difference.mean():+.1f}{spread}")
        lines.append(f"| {dataset} | {likelihood} | {len(of_seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(LABELLED), choices=list(LABELLED))
    parser.add_argument("--likelihoods", nargs="+", default=["nb", "zinb"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--clusterings", type=int, default=1, help="seeds of neighbours and Leiden")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    arguments = parser.parse_args()
    globals()["RESULTS"] = arguments.results
    if not arguments.table:
        keys = ["tool", "dataset", "likelihood", "seed"]
        for seed in arguments.seeds:
            for name in arguments.datasets:
                for likelihood in arguments.likelihoods:
                    for tool in arguments.tools:
                        rows = finished()
                        wanted = (tool, name, likelihood, seed)
                        if len(rows) and (rows[keys] == wanted).all(axis=1).any():
                            continue
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            row = run(*wanted, arguments.clusterings)
                        print(json.dumps(row), flush=True)
                        arguments.results.parent.mkdir(exist_ok=True)
                        with arguments.results.open("a") as stream:
                            stream.write(json.dumps(row) + "\n")
                        (TRAINED / f"{tool}-{name}-{likelihood}-{seed}.npz").unlink()
    print(table(finished()))


if __name__ == "__main__":
    main()
