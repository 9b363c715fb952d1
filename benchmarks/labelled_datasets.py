"""The labelled datasets of the benchmarks, as AnnData with raw counts in ``X`` and at most 2,000 variable genes.

The folder is taken from the environment variable ``SCVAE_EXT_DATA``; its files are described in its own README.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc

N_GENES = 2000
DATA = Path(os.environ.get("SCVAE_EXT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class LabelledDataset:
    """A file, the column of its cell types and the column of its batches."""

    name: str
    batch_key: str | None = None
    labels_key: str = "cell_type"

    def load(self) -> ad.AnnData:
        """Read the counts of the most variable genes (Seurat's dispersions on log-normalised values, by batch)."""
        path = DATA / f"{self.name}.h5ad"
        if not path.exists():
            raise SystemExit(f"{path} is missing: set SCVAE_EXT_DATA to the folder that holds it")
        adata = ad.read_h5ad(path)
        if adata.n_vars > N_GENES:
            normalised = adata.copy()
            sc.pp.normalize_total(normalised, target_sum=1e4)
            sc.pp.log1p(normalised)
            sc.pp.highly_variable_genes(normalised, n_top_genes=N_GENES, batch_key=self.batch_key)
            adata = adata[:, normalised.var["highly_variable"].to_numpy()].copy()
        enough = np.asarray(adata.X.sum(axis=1)).ravel() > 0
        adata = ad.AnnData(adata.X, obs=adata.obs, var=adata.var)[enough].copy()
        adata.obs[self.labels_key] = adata.obs[self.labels_key].astype("category")
        if self.batch_key is not None:
            adata.obs[self.batch_key] = adata.obs[self.batch_key].astype(str).astype("category")
        return adata

    def split(self, adata: ad.AnnData, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
        """Hold one tenth of the cells out, away from training and from early stopping alike."""
        order = np.random.default_rng(seed).permutation(adata.n_obs)
        n_held_out = adata.n_obs // 10
        return adata[np.sort(order[n_held_out:])].copy(), adata[np.sort(order[:n_held_out])].copy()


LABELLED = {
    dataset.name: dataset
    for dataset in (
        LabelledDataset("multiome_bmmc_neurips500", "batch"),
        LabelledDataset("pbmc_3tech_1767genes", "batch"),
        LabelledDataset("kang_ifnb_muscat1556", "condition"),
        LabelledDataset("kang_ifnb_2000", "condition"),
        LabelledDataset("bladder_mca_2100"),
        LabelledDataset("pbmc3k"),
        LabelledDataset("mixology_cross_protocol", "batch"),
        LabelledDataset("pbmc_batches", "batch"),
        LabelledDataset("citeseq_cbmc_2000genes"),
    )
}
