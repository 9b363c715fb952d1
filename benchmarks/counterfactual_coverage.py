"""How many real effects the 90 % intervals of counterfactual_effect hold: of interferon, on cells of each type.

The real effect of a type is the log2 ratio of its counts per total, stimulated over control cells, of genes with more
than 50 counts in both. The model predicts it from the control cells: of types that it has seen under both conditions,
and of one whose stimulated cells were left out, in turn. ``inside`` is the share of real effects in the interval,
``inside, noise`` that with the interval made wider by the standard error of the real one (over cells), ``large`` the
same of genes whose expression at least doubles or halves; ``slope`` that of the predicted on the real effect; and
``wrong sign`` the number of genes whose interval excludes zero on one side while the real effect is on the other by
two standard errors.

    pip install .
    SCVAE_EXT_DATA=/path/to/data python benchmarks/counterfactual_coverage.py          # minutes on two cores
    python benchmarks/counterfactual_coverage.py --table                               # only print what is there
    python benchmarks/counterfactual_coverage.py --smoke                               # tiny synthetic data
"""

import argparse
import json
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from counterfactual import cells_of, large_types, load, train
from scipy.special import ndtri

RESULTS = Path(__file__).parent / "results" / "counterfactual_coverage.jsonl"
LEVEL = 0.9
FEWEST_COUNTS = 50
FIGURES = ("inside", "inside_noise", "large", "slope", "wrong_sign")
SETTINGS = ({"condition": "ctrl"}, {"condition": "stim"})


def share(counts) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of each gene in all counts of some cells, and its variance over cells (of a ratio of sums)."""
    dense = np.asarray(counts.toarray(), dtype=float)
    total = dense.sum(1, keepdims=True)
    mean = dense.sum(0) / total.sum()
    return mean, np.square(dense - total * mean).sum(0) / total.sum() ** 2


def real_effect(adata: ad.AnnData, cell_type: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the log2 ratio of each gene, its standard error, and which genes have counts enough."""
    counts = [adata.X[cells_of(adata, cell_type, condition)] for condition in ("ctrl", "stim")]
    enough = np.all([np.asarray(each.sum(0)).ravel() > FEWEST_COUNTS for each in counts], axis=0)
    (control, of_control), (treated, of_treated) = map(share, counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(of_control / control**2 + of_treated / treated**2) / np.log(2)
        return np.log2(treated / control), error, enough


def figures_of(predicted: pd.DataFrame, real: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """Compare predicted intervals with real effects."""
    lower, upper, middle = (predicted[name].to_numpy() for name in ("lfc_lower", "lfc_upper", "lfc"))
    z = ndtri((1 + LEVEL) / 2)
    noisy = np.abs(real - middle) <= z * np.hypot((upper - lower) / 2 / z, error)
    large = np.abs(real) > 1
    wrong = ((lower > 0) & (real + 2 * error < 0)) | ((upper < 0) & (real - 2 * error > 0))
    return {
        "inside": float(((real >= lower) & (real <= upper)).mean()),
        "inside_noise": float(noisy.mean()),
        "large": float(noisy[large].mean()) if large.any() else np.nan,
        "slope": float(np.polyfit(real, middle, 1)[0]),
        "wrong_sign": int(wrong.sum()),
        "genes": len(real),
    }


def run(name: str, left_out: str, seed: int, smoke: bool = False) -> list[dict[str, object]]:
    """Train without the stimulated cells of a type, or with all, and return rows for what is to be judged then."""
    everything = load(name, smoke)
    types = large_types(everything)
    seen = everything[~cells_of(everything, left_out, "stim")].copy() if left_out else everything.copy()
    model = train(seen, seed, smoke, batch_key="condition")
    if smoke:
        model.calibrate_intervals(train_options={"accelerator": "cpu", "max_steps": 5})
    control = (seen.obs["condition"] == "ctrl").to_numpy()
    rows = []
    for within in (None, "cell_type"):
        table = model.counterfactual_effect(
            *SETTINGS, indices=control, groupby="cell_type", shift_within=within, level=LEVEL
        ).to_frame()
        for cell_type in [left_out] if left_out else types:
            real, error, enough = real_effect(everything, cell_type)
            predicted = table.xs(cell_type, level="group").reindex(everything.var_names)[enough]
            rows.append(
                {
                    "dataset": name,
                    "left_out": left_out,
                    "seed": seed,
                    "cell_type": cell_type,
                    "shift_within": within or "",
                    **figures_of(predicted, real[enough], error[enough]),
                    "version": version("scvae-ext"),
                }
            )
    return rows


def table(rows: pd.DataFrame) -> str:
    """Return means over seeds, as Markdown."""
    lines = [
        "| type | seen stimulated | shift_within | genes | inside | inside, noise | large | slope | wrong sign |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (cell_type, left_out, within), of_case in rows.groupby(["cell_type", "left_out", "shift_within"]):
        inside, noise, large, slope, wrong = of_case[list(FIGURES)].mean()
        lines.append(
            f"| {cell_type} | {'no' if left_out else 'yes'} | {within or 'none'} | {of_case['genes'].mean():.0f} "
            f"| {inside:.2f} | {noise:.2f} | {large:.2f} | {slope:.2f} | {wrong:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="kang_ifnb_muscat1556")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    parser.add_argument("--smoke", action="store_true", help="run on tiny synthetic data")
    arguments = parser.parse_args()
    if arguments.smoke:
        print(table(pd.DataFrame(run("synthetic", "", 0, smoke=True) + run("synthetic", "type_0", 0, smoke=True))))
        return
    if not arguments.table:
        for seed in arguments.seeds:
            for left_out in ["", *large_types(load(arguments.dataset, False))]:
                before = pd.read_json(arguments.results, lines=True) if arguments.results.exists() else pd.DataFrame()
                wanted = (arguments.dataset, left_out, seed)
                if len(before) and (before[["dataset", "left_out", "seed"]] == wanted).all(axis=1).any():
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    rows = run(*wanted)
                arguments.results.parent.mkdir(exist_ok=True)
                with arguments.results.open("a") as stream:
                    stream.writelines(json.dumps(row) + "\n" for row in rows)
    print(table(pd.read_json(arguments.results, lines=True)))


if __name__ == "__main__":
    main()
