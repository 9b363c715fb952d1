"""An AnnData, set up as a model knows it."""

from collections.abc import Iterator
from contextlib import contextmanager

from anndata import AnnData

from scvae_ext.data import Registry, write_registry
from scvae_ext.data.provenance import UNS_KEY

__all__ = ["set_up_as"]


@contextmanager
def set_up_as(adata: AnnData, registry: Registry) -> Iterator[AnnData]:
    """Give an AnnData with the set-up of a model, so that others can be built on it; put back what was there.

    A model that was loaded takes cells that were never set up, and those that it was built on may have been set up for
    something else since.

    Parameters
    ----------
    adata
        Annotated data.
    registry
        Set-up of the model.
    """
    before = adata.uns.get(UNS_KEY)
    write_registry(adata, registry)
    try:
        yield adata
    finally:
        if before is None:
            del adata.uns[UNS_KEY]
        else:
            adata.uns[UNS_KEY] = before
