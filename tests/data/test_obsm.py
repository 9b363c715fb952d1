import numpy as np
import pytest

from scvae_ext.data.obsm import ObsmFeatures
from scvae_ext.datasets import synthetic_counts

PROTEINS = ObsmFeatures("protein", "protein_expression_obsm_key", "protein_names_uns_key")


@pytest.fixture
def adata():
    adata = synthetic_counts(60, 20, n_proteins=4, seed=1)
    adata.obsm["protein"] = np.ma.masked_greater(adata.obsm["protein"].to_numpy(), 50)
    return adata


MESSAGE = (
    r"protein_expression_obsm_key: adata.obsm\['protein'\] is a numpy.ma.MaskedArray, whose mask would be lost. "
    r"Write.*adata.obsm\['protein'\].astype\(float\).filled\(numpy.nan\) where proteins were not measured"
)


def test_a_masked_array_does_not_lose_its_mask(adata):
    with pytest.raises(TypeError, match=MESSAGE):
        PROTEINS.read(adata, "protein", None)
    filled = adata.obsm["protein"].astype(float).filled(np.nan)
    adata.obsm["protein"] = filled
    np.testing.assert_array_equal(PROTEINS.read(adata, "protein", None)[0], filled)


def test_neither_do_the_chunks_of_a_dask_array(adata):
    array = pytest.importorskip("dask.array", reason="Dask is in the extra 'scale'")
    values = adata.obsm["protein"].data
    adata.obsm["protein"] = array.from_array(values, chunks=(20, 4)).map_blocks(np.ma.masked_greater, 50)
    with pytest.raises(TypeError, match=MESSAGE):
        PROTEINS.read(adata, "protein", None)
