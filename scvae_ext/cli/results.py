"""What a trained model writes into the AnnData of a command."""

import anndata as ad

from scvae_ext.cli.quality import CountModel, held_out_elbo
from scvae_ext.models import CiteVAE, SemiSupervisedVAE

__all__ = ["write_results"]


def write_results(model: CountModel, adata: ad.AnnData, *, normalized_expression: bool) -> None:
    """Write what the model says of its cells into their AnnData, and print how good it is.

    Parameters
    ----------
    model
        Trained model.
    adata
        Its AnnData.
    normalized_expression
        Whether denoised expression, which is dense, is written as well.
    """
    model.get_latent_representation()
    if normalized_expression:
        model.get_normalized_expression()
    if isinstance(model, CiteVAE):
        model.get_protein_expression()
        model.get_protein_foreground_probability()
    if isinstance(model, SemiSupervisedVAE):
        model.predict()
        probability = adata.obs["scvae_label_probability"].mean()
        print(f'labels of {adata.n_obs:,} cells are in obs["scvae_label"], right with {probability:.0%} on average')
    print(held_out_elbo(model))
