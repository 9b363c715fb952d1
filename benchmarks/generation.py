"""Can generated cells be told from real ones that the model has not seen? Classifier two-sample tests.

A third of the cells is held out. A model is trained on the others, generates as many cells as were held out, and linear
and tree classifiers try to tell the two apart (area under the ROC curve of cells left out; 0.5 is chance, and what real
cells give against other real cells stands beside it). States come from the prior, standard normal or a mixture that is
learned, or from the posteriors of training cells; library sizes from the fitted distribution given batch and state.
Each finished run is a line in the results file, so that an interrupted benchmark goes on where it stopped.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/generation.py               # everything, some hours on two cores
    SCVAE_EXT_DATA=/path/to/data python benchmarks/generation.py --datasets pbmc_3tech_1767genes --seeds 0
    python benchmarks/generation.py --table                                     # only print what is there
    python benchmarks/generation.py --smoke                                     # tiny synthetic data, some seconds
"""

import argparse
import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from labelled_datasets import LABELLED

import scvae_ext as sv

RESULTS = Path(__file__).parent / "results" / "generation.jsonl"
PRIORS = ("standard", "mixture")
SOURCES = ("prior", "cells")
PEER = "scvi-tools"
TOOLS = ("scvae-ext", PEER)


def rows_of(tool: str, name: str, seed: int, prior: str, smoke: bool) -> list[dict[str, object]]:
    """Train one model and test cells from its prior, and like its training cells."""
    if smoke:
        everything, batch_key = sv.datasets.synthetic_counts(240, 60, n_batches=2), "batch"
    else:
        dataset = LABELLED[name]
        everything, batch_key = dataset.load(), dataset.batch_key
    order = np.random.default_rng(seed).permutation(everything.n_obs)
    n_held_out = everything.n_obs // 3
    train, held_out = (everything[np.sort(of)].copy() for of in (order[n_held_out:], order[:n_held_out]))
    others = everything[np.sort(order[n_held_out : 2 * n_held_out])]
    if tool == PEER:
        generated_like = {"cells": generated_by_peer(train, batch_key, n_held_out, seed, smoke)}
    else:
        sv.SCVAE.setup_anndata(train, batch_key=batch_key)
        model = sv.SCVAE(train, prior=prior, seed=seed)
        model.train(accelerator="cpu", enable_progress_bar=False, seed=seed, **({"max_steps": 50} if smoke else {}))
        generated_like = {like: model.generate(n_held_out, like=like, seed=seed) for like in SOURCES}
    rows = []
    for like, generated in generated_like.items():
        found = sv.diagnostics.two_sample_test(held_out, generated, reference=others, seed=seed)
        row = {"dataset": name, "seed": seed, "tool": tool, "prior": prior, "like": like, "n": n_held_out}
        for result, usual in zip(found.generated, found.reference, strict=True):
            row |= {result.classifier: result.auc, f"{result.classifier}_error": result.standard_error}
            row |= {f"{result.classifier}_real": usual.auc}
        row |= {
            "p_linear": found.generated[0].p_value,
            "features": int((found.features["q_value"] <= 0.05).sum()),
            "first": found.features.index[0],
            "version": version(tool),
        }
        if tool != PEER:
            library = json.loads(generated.uns["scvae_ext"])["results"]["X"]["arguments"]["library_size"][0]
            row |= {"library": f"{library['mean']}, {library['residual']}"}
        rows.append(row)
    return rows


def generated_by_peer(train: ad.AnnData, batch_key: str | None, n_obs: int, seed: int, smoke: bool) -> ad.AnnData:
    """Train scvi-tools by its defaults, and draw counts like those of training cells, each of which is taken once."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(train, batch_key=batch_key)
    model = scvi.model.SCVI(train)
    model.train(accelerator="cpu", enable_progress_bar=False, **({"max_epochs": 2} if smoke else {}))
    chosen = np.sort(np.random.default_rng(seed).choice(train.n_obs, n_obs, replace=False))
    counts = model.posterior_predictive_sample(indices=chosen, n_samples=1).to_scipy_sparse().tocsr()
    return ad.AnnData(counts.astype(np.float32), var=train.var[[]])


def finished(path: Path) -> pd.DataFrame:
    """Return the rows of the results file."""
    rows = pd.read_json(path, lines=True) if path.exists() else pd.DataFrame()
    return rows.assign(tool=rows["tool"].fillna("scvae-ext")) if "tool" in rows else rows.assign(tool="scvae-ext")


def table(rows: pd.DataFrame) -> str:
    """Return means over seeds as Markdown."""
    lines = [
        "| dataset | cells | tool | prior | drawn like | seeds | linear | real | trees | real | features that differ "
        "| most |",
        "|---|---:|---|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    by = ["dataset", "tool", "prior", "like"]
    for (name, tool, prior, like), of in rows.sort_values("dataset", kind="stable").groupby(by, sort=False):
        values = [
            f"{of['linear'].mean():.3f} ± {of['linear_error'].mean():.3f}",
            f"{of['linear_real'].mean():.3f}",
            f"{of['trees'].mean():.3f} ± {of['trees_error'].mean():.3f}",
            f"{of['trees_real'].mean():.3f}",
            f"{of['features'].mean():.0f}",
            str(of["first"].iloc[0]),
        ]
        lines.append(f"| {name} | {of['n'].iloc[0]} | {tool} | {prior} | {like} | {len(of)} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(LABELLED), choices=list(LABELLED))
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--priors", nargs="+", default=list(PRIORS), choices=PRIORS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    parser.add_argument("--smoke", action="store_true", help="tiny synthetic data, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        tools = [tool for tool in arguments.tools if tool != PEER or find_spec("scvi")]
        print(table(pd.DataFrame([row for tool in tools for row in rows_of(tool, "synthetic", 0, "standard", True)])))
        return
    if not arguments.table:
        arguments.results.parent.mkdir(exist_ok=True)
        runs = [
            (tool, prior) for tool in arguments.tools for prior in (arguments.priors if tool != PEER else [PRIORS[0]])
        ]
        for seed in arguments.seeds:
            for name in arguments.datasets:
                for tool, prior in runs:
                    rows = finished(arguments.results)
                    wanted = (name, seed, tool, prior)
                    if len(rows) and (rows[["dataset", "seed", "tool", "prior"]] == wanted).all(axis=1).any():
                        continue
                    new = rows_of(tool, name, seed, prior, smoke=False)
                    with arguments.results.open("a") as stream:
                        stream.writelines(json.dumps(row) + "\n" for row in new)
    rows = finished(arguments.results)
    print(table(rows) if len(rows) else "no finished run yet")


if __name__ == "__main__":
    main()
