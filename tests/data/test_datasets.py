import subprocess
import sys

import numpy as np
import scanpy
import scipy.sparse as sp

import scvae_ext.datasets
from scvae_ext.data import pbmc68k_reduced, read_registry, setup_anndata, synthetic_counts
from scvae_ext.data.fields import layer_names


def test_recovered_counts_are_certain():
    adata = pbmc68k_reduced()
    stored = scanpy.datasets.pbmc68k_reduced()
    total = stored.obs["n_counts"].to_numpy(dtype=np.float64)[:, None]
    recovered = np.expm1(stored.raw.X.toarray().astype(np.float64)) * total / 1e4
    np.testing.assert_allclose(adata.X.toarray(), recovered, atol=0.1)
    # Rounding of the stored logarithm, half of its third decimal, explains what is left.
    assert (np.abs(adata.X.toarray() - recovered) <= (recovered + total / 1e4) * 5.1e-4).all()
    assert (adata.obs["n_counts"] >= adata.X.sum(1).A1).all()


def test_content():
    adata = pbmc68k_reduced()
    assert adata.shape == (700, 765)
    assert isinstance(adata.X, sp.csr_matrix)
    assert adata.X.dtype == np.float32
    assert (adata.X.data >= 1).all()
    assert list(adata.obs) == ["cell_type", "n_counts"]
    assert adata.obs["cell_type"].nunique() == 10
    assert "CD3D" in adata.var_names
    assert [len(slot) for slot in (adata.uns, adata.obsm, adata.obsp, adata.varm, layer_names(adata))] == [0] * 5
    assert adata.raw is None


def test_it_can_be_set_up():
    adata = pbmc68k_reduced()
    setup_anndata(adata, labels_key="cell_type")
    read_registry(adata).require_counts("nb")


def test_public_module():
    assert scvae_ext.datasets.pbmc68k_reduced is pbmc68k_reduced
    assert scvae_ext.datasets.synthetic_counts is synthetic_counts


def test_importing_data_imports_neither_scanpy_nor_lightning():
    code = "import sys, scvae_ext.data, scvae_ext.datasets; print({'scanpy', 'lightning'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
