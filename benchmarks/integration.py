"""Batch correction and conservation of cell types by scib-metrics, beside scvi-tools, Harmony, Scanorama and nothing.

scib-metrics (Luecken et al., Nature Methods 2022) computes five figures of how well batches are mixed and five of how
well cell types are kept; the total is 0.4 times the mean of the first plus 0.6 times that of the second, without
rescaling between methods. Two of the latter are the agreement of k-means with the types from a single start; here they
are means over 20 starts, and the total with the single one has a column of its own. Unlabelled cells are left out.

Neural networks train on nine tenths of the cells and embed all; Harmony, Scanorama and principal components see all
cells. Each finished run is a line in the results file, so that an interrupted benchmark goes on where it stopped.
``--embeddings`` takes what another run of the same split has embedded already, such as the latent states of
scvi-tools from ``quality.py``, which trains the same networks on the same cells.

    python3 -m venv .venv-scib && .venv-scib/bin/pip install -c constraints.txt . \
        && .venv-scib/bin/pip install -r benchmarks/requirements-integration.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/integration.py                # everything, a day on two cores
    SCVAE_EXT_DATA=/path/to/data python benchmarks/integration.py --datasets pbmc_3tech_1767genes --seeds 0
    python benchmarks/integration.py --table                                     # only print what is there
    python benchmarks/integration.py --smoke                                     # tiny synthetic data, some seconds
"""

import argparse
import json
import platform
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from labelled_datasets import LABELLED, LabelledDataset
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.neighbors import NearestNeighbors

RESULTS = Path(__file__).parent / "results" / "integration.jsonl"
DATASETS = [name for name, dataset in LABELLED.items() if dataset.batch_key is not None]
UNLABELLED = ["unlabelled", "unknown", "nan"]
PENALTIES = {
    "scvae-ext": 0.0,
    "scvae-ext, penalty 10": 10.0,
    "scvae-ext, penalty 30": 30.0,
}
TOOLS = ["unintegrated", "harmony", "scanorama", "scvi-tools", *PENALTIES]
MODULES = {"harmony": "harmonypy", "scanorama": "scanorama", "scvi-tools": "scvi"}
STEPS_OF_SMOKE = 50
# Of k-means: from a single start, which is what scib-metrics takes, its agreement with the types was seen to differ by
# 0.2 between starts, and the total by 0.04.
N_STARTS = 20
# Agreement by k-means is two of the figures whose mean is "bio".
N_BIO_FIGURES = 5


class Synthetic(LabelledDataset):
    """Simulated counts of two batches, in place of a file."""

    def load(self) -> ad.AnnData:
        import scvae_ext as sv

        return sv.datasets.synthetic_counts(240, 60, n_types=3, n_batches=2)


def principal_components(everything: ad.AnnData, seed: int) -> tuple[ad.AnnData, np.ndarray]:
    """Return log-normalised values and their first 50 principal components."""
    normalised = everything.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    sc.pp.pca(normalised, n_comps=min(50, *(size - 1 for size in normalised.shape)), random_state=seed)
    return normalised, normalised.obsm["X_pca"]


def by_harmony(everything: ad.AnnData, batch_key: str, seed: int) -> np.ndarray:
    """Correct principal components by Harmony's defaults."""
    import harmonypy

    components = principal_components(everything, seed)[1]
    corrected = harmonypy.run_harmony(components, everything.obs, batch_key, random_state=seed, verbose=False).Z_corr
    corrected = np.asarray(corrected)
    return corrected if len(corrected) == everything.n_obs else corrected.T


def by_scanorama(everything: ad.AnnData, batch_key: str, seed: int) -> np.ndarray:
    """Embed log-normalised values by Scanorama's defaults."""
    import scanorama

    normalised = principal_components(everything, seed)[0]
    codes = normalised.obs[batch_key].cat.codes.to_numpy()
    rows = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    genes = normalised.var_names.to_list()
    embedded, _ = scanorama.integrate([normalised.X[of] for of in rows], [genes] * len(rows), seed=seed, verbose=0)
    result = np.empty((everything.n_obs, embedded[0].shape[1]), dtype=np.float32)
    for of, values in zip(rows, embedded, strict=True):
        result[of] = values
    return result


def by_scvi(train: ad.AnnData, everything: ad.AnnData, batch_key: str, seed: int, smoke: bool) -> np.ndarray:
    """Train scvi-tools by its defaults, with the same likelihood."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(train, batch_key=batch_key)
    model = scvi.model.SCVI(train, gene_likelihood="nb")
    model.train(accelerator="cpu", enable_progress_bar=False, max_epochs=2 if smoke else None)
    return model.get_latent_representation(everything)


def by_scvae_ext(train, held_out, everything, batch_key, seed, penalty, smoke, **options):
    """Train scvae_ext by its defaults but for the penalty; return the latent, and the ELBO of the held-out cells."""
    import scvae_ext as sv

    sv.SCVAE.setup_anndata(train, batch_key=batch_key)
    model = sv.SCVAE(train, seed=seed, **options)
    length = {"max_steps": STEPS_OF_SMOKE} if smoke else {}
    model.train(accelerator="cpu", enable_progress_bar=False, seed=seed, batch_penalty=penalty, **length)
    return model.get_latent_representation(everything, key_added=None), float(model.get_elbo(held_out, n_samples=20))


def embed(
    tool: str, dataset: LabelledDataset, seed: int, smoke: bool, cells: ad.AnnData | None = None
) -> tuple[np.ndarray, float | None]:
    """Return the embedding of all cells, or of the given ones, by one tool, and the held-out ELBO if it is of ours."""
    everything, batch_key = dataset.load() if cells is None else cells, dataset.batch_key
    if tool == "unintegrated":
        return principal_components(everything, seed)[1], None
    if tool == "harmony":
        return by_harmony(everything, batch_key, seed), None
    if tool == "scanorama":
        return by_scanorama(everything, batch_key, seed), None
    train, held_out = dataset.split(everything, seed)
    if tool == "scvi-tools":
        return by_scvi(train, everything, batch_key, seed, smoke), None
    return by_scvae_ext(train, held_out, everything, batch_key, seed, PENALTIES[tool], smoke)


def saved_embedding(folder: Path | None, tool: str, name: str, seed: int, n_cells: int) -> np.ndarray | None:
    """Return the embedding of all cells that another run has saved, or None."""
    path = folder / f"{name}-nb-{seed}-{tool}.npy" if folder else None
    if path is None or not path.exists():
        return None
    latent = np.load(path)
    if len(latent) != n_cells:
        raise SystemExit(f"{path} has {len(latent)} rows for the {n_cells} cells of {name}")
    return latent


def exact_neighbours(values: np.ndarray, k: int):
    """Find neighbours by looking at all pairs, each cell its own first one."""
    from scib_metrics.nearest_neighbors import NeighborsResults

    distance, index = NearestNeighbors(n_neighbors=k).fit(values).kneighbors(values)
    return NeighborsResults(indices=index, distances=distance)


def scores(latent: np.ndarray, dataset: LabelledDataset) -> dict[str, float]:
    """Return the figures of scib-metrics for an embedding of all cells of a dataset, and the dependence on batch."""
    import torch

    from scvae_ext.modules import batch_dependence

    everything = dataset.load()
    known = ~everything.obs[dataset.labels_key].astype(str).isin(UNLABELLED).to_numpy()
    labels = everything.obs[dataset.labels_key].astype(str)[known]
    batches = everything.obs[dataset.batch_key].astype(str)[known]
    codes = torch.from_numpy(pd.factorize(batches)[0].astype(np.int64))
    latent = np.ascontiguousarray(latent, dtype=np.float32)[known]
    row = {"n_scored": int(known.sum()), "dependence": float(batch_dependence(torch.from_numpy(latent), codes))}
    if find_spec("scib_metrics") is None:
        return row | {"silhouette_label": float((1 + silhouette_score(latent, labels)) / 2)}
    from scib_metrics.benchmark import Benchmarker

    space = ad.AnnData(
        np.zeros((len(latent), 1), dtype=np.float32), obs=pd.DataFrame({"batch": batches, "type": labels})
    )
    space.obsm["latent"] = latent
    space.obsm["before"] = principal_components(everything, 0)[1][known]
    judge = Benchmarker(
        space, "batch", "type", ["latent"], pre_integrated_embedding_obsm_key="before", progress_bar=False
    )
    judge.prepare(exact_neighbours)
    judge.benchmark()
    found = judge.get_results(min_max_scale=False, clean_names=False).loc["latent"].astype(float)
    names = {"Bio conservation": "bio", "Batch correction": "batch", "Total": "total"}
    row |= {names.get(name, name): float(value) for name, value in found.items()}
    return row | over_starts(row, latent, labels)


def over_starts(row: dict[str, float], latent: np.ndarray, labels: pd.Series) -> dict[str, float]:
    """Return bio and total with the means over many starts of k-means in place of the figures of a single one."""
    agreement = []
    for start in range(N_STARTS):
        clusters = KMeans(labels.nunique(), n_init=1, random_state=start).fit_predict(latent)
        agreement.append((normalized_mutual_info_score(labels, clusters), adjusted_rand_score(labels, clusters)))
    nmi, ari = np.mean(agreement, axis=0)
    more = nmi - row["nmi_ari_cluster_labels_kmeans_nmi"] + ari - row["nmi_ari_cluster_labels_kmeans_ari"]
    bio = row["bio"] + more / N_BIO_FIGURES
    return {
        "kmeans_nmi": nmi,
        "kmeans_ari": ari,
        "bio_over_starts": bio,
        "total_over_starts": 0.4 * row["batch"] + 0.6 * bio,
    }


def package_version(tool: str) -> str:
    """Return the version of the package behind a tool."""
    packages = {"scvi-tools": "scvi-tools", "harmony": "harmonypy", "scanorama": "scanorama", "unintegrated": "scanpy"}
    return version(packages.get(tool, "scvae-ext"))


def make_row(tool: str, name: str, seed: int, latent: np.ndarray, elbo: float | None, figures: dict) -> dict:
    """Put a line of the results file together."""
    return {
        "dataset": name,
        "tool": tool,
        "seed": seed,
        "n_latent": latent.shape[1],
        **figures,
        "elbo": elbo,
        "version": package_version(tool),
        "python": platform.python_version(),
    }


def finished(path: Path) -> pd.DataFrame:
    """Return the rows of the results file."""
    return pd.read_json(path, lines=True) if path.exists() else pd.DataFrame()


def table(rows: pd.DataFrame) -> str:
    """Return means over seeds for each dataset and tool as Markdown, the best total in bold."""
    lines = [
        "| dataset | tool | seeds | batch | bio | total | total, one start | dependence | held-out ELBO |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in [name for name in DATASETS if name in set(rows["dataset"])]:
        means = rows[rows["dataset"] == name].groupby("tool")
        best = means["total_over_starts"].mean().idxmax()
        for tool in [tool for tool in TOOLS if tool in means.groups]:
            of = means.get_group(tool)
            spread = f" ± {of['total_over_starts'].std():.3f}" if len(of) > 1 else ""
            total = f"{of['total_over_starts'].mean():.3f}{spread}"
            elbo = "" if of["elbo"].isna().all() else f"{of['elbo'].mean():.1f}"
            lines.append(
                f"| {name} | {tool} | {len(of)} | {of['batch'].mean():.3f} | {of['bio_over_starts'].mean():.3f} | "
                f"{f'**{total}**' if tool == best else total} | {of['total'].mean():.3f} | "
                f"{of['dependence'].mean():.3f} | {elbo} |"
            )
    return "\n".join(lines)


def smoke() -> None:
    """Run everything that is installed on tiny data."""
    dataset = Synthetic("synthetic", "batch")
    for tool in TOOLS:
        if tool in MODULES and find_spec(MODULES[tool]) is None:
            print(f"{tool}: not installed")
            continue
        latent, elbo = embed(tool, dataset, 0, smoke=True)
        print(json.dumps({"tool": tool, **scores(latent, dataset), "elbo": elbo}))


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=DATASETS, choices=DATASETS)
    parser.add_argument("--tools", nargs="+", default=TOOLS, choices=TOOLS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--embeddings", type=Path, help="folder of saved embeddings, {dataset}-nb-{seed}-{tool}.npy")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    parser.add_argument("--smoke", action="store_true", help="tiny synthetic data, to see that it runs")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.smoke:
        smoke()
        return
    if not arguments.table:
        arguments.results.parent.mkdir(exist_ok=True)
        for seed in arguments.seeds:
            for name in arguments.datasets:
                for tool in arguments.tools:
                    rows = finished(arguments.results)
                    wanted = (name, tool, seed)
                    if len(rows) and (rows[["dataset", "tool", "seed"]] == wanted).all(axis=1).any():
                        continue
                    dataset = LABELLED[name]
                    saved = saved_embedding(arguments.embeddings, tool, name, seed, dataset.load().n_obs)
                    latent, elbo = embed(tool, dataset, seed, smoke=False) if saved is None else (saved, None)
                    figures = scores(latent, dataset) | ({} if saved is None else {"saved": True})
                    row = make_row(tool, name, seed, latent, elbo, figures)
                    print(json.dumps(row), flush=True)
                    with arguments.results.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
    rows = finished(arguments.results)
    print(table(rows) if len(rows) else "no finished run yet")


if __name__ == "__main__":
    main()
