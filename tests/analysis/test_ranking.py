import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from scvae_ext.analysis import expected_fdr, rank_genes_groups

GENES = ["g0", "g1", "g2", "g3"]


@pytest.fixture
def tables():
    table = pd.DataFrame(
        {
            "proba_de": [0.2, 1.0, 0.99, 0.0],
            "lfc_mean": [0.5, 3.0, -2.0, 0.0],
            "lfc_std": [1.0, 0.5, 0.5, 0.0],
            "non_zeros_proportion1": [0.1, 0.2, 0.3, 0.4],
            "non_zeros_proportion2": [0.5, 0.6, 0.7, 0.8],
        },
        index=GENES,
    )
    return {"a": table, "b": table.assign(lfc_mean=-table["lfc_mean"])}


@pytest.fixture
def adata(tables):
    adata = anndata.AnnData(np.ones((4, 4), dtype=np.float32), obs=pd.DataFrame({"type": list("aabb")}, list("wxyz")))
    adata.var_names = GENES
    parameters = {"groupby": "type", "reference": "rest", "method": "scvae_ext change", "use_raw": False}
    adata.uns["rank_genes_groups"] = rank_genes_groups(tables, parameters)
    return adata


def test_scanpy_reads_genes_by_descending_score(adata):
    frame = sc.get.rank_genes_groups_df(adata, "a")
    assert frame["names"].tolist() == ["g1", "g0", "g3", "g2"]
    np.testing.assert_allclose(frame["scores"], [6.0, 0.5, 0.0, -4.0])
    np.testing.assert_allclose(frame["logfoldchanges"], [3.0, 0.5, 0.0, -2.0])
    np.testing.assert_allclose(frame["pvals"], [0.0, 0.8, 1.0, 0.01], atol=1e-12)
    np.testing.assert_allclose(frame["pvals_adj"], expected_fdr(np.array([0.2, 1.0, 0.99, 0.0]))[[1, 0, 3, 2]])
    assert frame["pct_nz_group"].tolist() == [0.2, 0.1, 0.4, 0.3]
    assert frame["pct_nz_reference"].tolist() == [0.6, 0.5, 0.8, 0.7]


def test_several_groups(adata):
    frame = sc.get.rank_genes_groups_df(adata, None)
    assert frame[frame["group"] == "b"]["names"].tolist() == ["g2", "g3", "g0", "g1"]


def test_survives_a_file(adata, tmp_path):
    adata.write_h5ad(tmp_path / "ranked.h5ad")
    again = anndata.read_h5ad(tmp_path / "ranked.h5ad")
    pd.testing.assert_frame_equal(
        sc.get.rank_genes_groups_df(again, "a"), sc.get.rank_genes_groups_df(adata, "a"), check_dtype=False
    )


def test_vanilla_tables_rank_by_bayes_factor():
    table = pd.DataFrame(
        {"proba_m1": [0.2, 0.9], "bayes_factor": [-1.4, 2.2], "scale1": [0.0, 4.0], "scale2": [0.0, 1.0]},
        index=GENES[:2],
    )
    structure = rank_genes_groups({"a": table}, {"method": "scvae_ext vanilla"})
    assert structure["names"]["a"].tolist() == ["g1", "g0"]
    assert structure["logfoldchanges"]["a"].tolist() == [2.0, 0.0]
    assert "pts" not in structure
