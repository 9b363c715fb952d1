"""Noise and bias of gradient estimators on real cells: text, table and picture of the page on gradient estimators.

Run: SCVAE_EXT_DATA=/path/to/data python docs/figures/gradient_estimators.py
"""

import os
from pathlib import Path

import anndata
import torch

import scvae_ext as sv

DATASET = "pbmc_3tech_1767genes"
PICTURE = Path(__file__).parent.parent / "_static" / "gradient_estimators.png"


def main() -> None:
    torch.set_num_threads(1)
    adata = anndata.read_h5ad(Path(os.environ["SCVAE_EXT_DATA"]) / f"{DATASET}.h5ad")
    sv.SCVAE.setup_anndata(adata)
    model = sv.SCVAE(adata)
    model.train(enable_progress_bar=False)
    result = sv.diagnostics.gradient_estimators(model)
    print(result, flush=True)
    frame = result.to_frame()
    print(frame.to_string())
    print(frame["noise_to_signal"].unstack("group").to_string(float_format="{:.3g}".format))
    sv.pl.gradient_estimators(result)[0].figure.savefig(PICTURE, dpi=150)
    for n_samples in (2, 10):
        of_k = sv.diagnostics.gradient_estimators(model, n_samples=n_samples, n_estimates=40, n_reference=100)
        print(n_samples, of_k.to_frame()["noise_to_signal"].unstack("group").to_string(float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
