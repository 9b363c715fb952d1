"""Real data that every user has, without a download."""

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

__all__ = ["pbmc68k_reduced"]


def pbmc68k_reduced() -> AnnData:
    r"""Return 700 human blood cells with raw counts and cell types, from the copy inside scanpy.

    scanpy keeps the logarithm of counts per 10,000, rounded to three decimals, and the total :math:`n` of each cell
    over all genes. The counts are recovered as :math:`x = \operatorname{round}(n\,(e^{y} - 1) / 10^4)`, which is exact:
    the rounding of :math:`y` moves no entry by half a count.

    Returns
    -------
    anndata.AnnData
        700 cells by 765 genes. ``X`` holds UMI counts (CSR, float32), ``obs["cell_type"]`` ten cell types, and
        ``obs["n_counts"]`` the total of each cell over all genes that were measured, not only these.

    References
    ----------
    Zheng et al. Massively parallel digital transcriptional profiling of single cells. Nature Communications 8, 14049
    (2017).

    Examples
    --------
    >>> from scvae_ext.datasets import pbmc68k_reduced
    >>> pbmc68k_reduced().shape
    (700, 765)
    """
    # scanpy takes seconds to import.
    import scanpy

    stored = scanpy.datasets.pbmc68k_reduced()
    counts = sp.csr_matrix(stored.raw.X, dtype=np.float64)
    per_entry = np.repeat(stored.obs["n_counts"].to_numpy(dtype=np.float64), np.diff(counts.indptr))
    counts.data = np.rint(np.expm1(counts.data) * per_entry / 1e4)
    counts.eliminate_zeros()
    obs = pd.DataFrame(
        {"cell_type": stored.obs["bulk_labels"], "n_counts": stored.obs["n_counts"]}, index=stored.obs_names
    )
    return AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=stored.raw.var_names))
