import pytest

from scvae_ext import SCVAE
from scvae_ext.datasets import synthetic_counts
from scvae_ext.models.set_up import set_up_as


@pytest.mark.parametrize("before", [None, {}, {"batch_key": "batch"}])
def test_models_can_be_built_and_what_was_there_comes_back(before):
    known = synthetic_counts(50, 10, n_batches=2)
    SCVAE.setup_anndata(known, labels_key="cell_type")
    registry = SCVAE(known).registry
    adata = synthetic_counts(50, 10, n_batches=2)
    if before is not None:
        SCVAE.setup_anndata(adata, **before)
    uns = dict(adata.uns)
    with set_up_as(adata, registry) as given:
        assert given is adata
        assert SCVAE(adata).registry == registry
    assert adata.uns.keys() == uns.keys()
    assert adata.uns.get("scvae_ext") == uns.get("scvae_ext")
    with pytest.raises(KeyError), set_up_as(adata, registry):
        raise KeyError
    assert adata.uns.get("scvae_ext") == uns.get("scvae_ext")
