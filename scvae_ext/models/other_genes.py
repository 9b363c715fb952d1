"""Expression of genes that a model was not trained on, by a linear head on its decoder."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from jaxtyping import Float
from torch import Tensor

from scvae_ext.data.fields import Layer
from scvae_ext.data.opening import CountMatrix, open_counts
from scvae_ext.data.validation import require_counts, scan_counts
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.models.cells import Cells
from scvae_ext.modules import VAE

__all__ = ["LinearHead", "OtherGenes", "fit_other_genes"]

# Directions of the hidden layer with less of the largest variance than this are noise.
SMALLEST_VARIANCE = 1e-6
DISPERSION_RANGE = (1e-3, 1e6)
# Expression never falls below this share of the mean of a gene.
SMALLEST_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class LinearHead:
    r"""Expression per unit of depth as a linear function of the decoder's hidden layer, :math:`\rho_g = a_g + b_g h`.

    Parameters
    ----------
    weight, bias
        :math:`b` and :math:`a`.
    least
        Smallest value of each gene.
    """

    weight: Float[Tensor, "genes hidden"]
    bias: Float[Tensor, "genes"]
    least: Float[Tensor, "genes"]

    def __call__(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        """Return the expression of each cell and gene.

        Parameters
        ----------
        hidden
            Activations of the decoder.
        """
        return torch.maximum(hidden @ self.weight.T + self.bias, self.least)


@dataclass(frozen=True, eq=False)
class OtherGenes:
    """Genes of an AnnData that a model does not have.

    Parameters
    ----------
    names
        Their names.
    counts
        Counts of all cells of the AnnData.
    head
        Fitted to them.
    inverse_dispersion
        By moments, of all cells together: what the head does not explain is part of it.
    """

    names: tuple[str, ...]
    counts: CountMatrix
    head: LinearHead
    inverse_dispersion: Float[Tensor, "genes"]

    def read(self, positions: np.ndarray, device: torch.device) -> SparseCounts:
        """Return the counts of some cells.

        Parameters
        ----------
        positions
            Which.
        device
            Where to put them.
        """
        return _sparse_counts(self.counts.rows(positions)).to(device)


def fit_other_genes(module: VAE, cells: Cells, adata: AnnData, layer: str, var_names: tuple[str, ...]) -> OtherGenes:
    r"""Fit a linear head to the counts of the genes that a model does not have.

    With the hidden layer whitened over cells, :math:`u`, depth :math:`\ell`, the mean :math:`m_g` of a gene and
    :math:`K` directions,

    .. math:: \mathbb E[x_{ng}] = \ell_n (m_g + b_g u_n), \qquad b_g = \frac{\sum_n u_n x_{ng}}{\sum_n \ell_n + K/m_g},

    the solution of least squares weighted as for Poisson counts, with a normal prior under which the head explains
    as much variance as the square of the mean. It takes one pass over the cells.

    To be used inside :func:`~scvae_ext.models.cells.evaluating`.

    Parameters
    ----------
    module, cells
        Trained module, and the cells to fit to.
    adata, layer
        Where the counts are; ``"X"`` for ``adata.X``.
    var_names
        Genes of the model.

    Raises
    ------
    ValueError
        If the layer is missing or holds no other genes, or no counts.
    """
    names = adata.var_names.astype(str)
    other = ~names.isin(list(var_names))
    if not other.any():
        raise ValueError(
            f"layer={layer!r}: all {len(names)} genes of adata are the model's own. Pass the AnnData with all genes, "
            "adata=..., or leave layer out."
        )
    where = Layer(None if layer == "X" else layer)
    position = np.where(other, np.cumsum(other) - 1, -1).astype(np.int64)
    counts = open_counts(adata, where, position, int(other.sum()))
    facts = scan_counts(counts.chunks(), adata.obs_names, pd.Index(names[other]), where.where)
    require_counts(facts.first_fraction, where.where, "nb")
    head, inverse_dispersion = _fit(module, cells, counts)
    return OtherGenes(tuple(names[other]), counts, head, inverse_dispersion)


def _fit(module: VAE, cells: Cells, counts: CountMatrix) -> tuple[LinearHead, Float[Tensor, "genes"]]:
    """Add up moments of the hidden layer and its products with counts, and solve."""
    moments: np.ndarray | float = 0.0
    products: np.ndarray | float = 0.0
    squared_depth, of_squares, of_depth = 0.0, np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for rows, minibatch in cells:
        hidden, depth = _hidden(module, minibatch)
        features = np.column_stack([np.ones(len(hidden)), hidden])
        moments = moments + features.T @ (depth[:, None] * features)
        observed = counts.rows(cells.positions[rows])
        products = products + observed.T @ features
        squared_depth += float(depth @ depth)
        of_squares += np.asarray(observed.power(2).sum(0), dtype=np.float64).ravel()
        of_depth += observed.T @ depth
    moments, products = np.asarray(moments), np.asarray(products)
    total, centre = moments[0, 0], moments[0, 1:] / moments[0, 0]
    of_counts, cross = products[:, 0], products[:, 1:]
    variances, directions = np.linalg.eigh(moments[1:, 1:] / total - np.outer(centre, centre))
    kept = variances > SMALLEST_VARIANCE * max(variances[-1], np.finfo(np.float64).tiny)
    whitening = directions[:, kept] / np.sqrt(variances[kept])
    # A gene without counts keeps half of one, so that its expression is positive.
    mean = np.maximum(of_counts, 0.5) / total
    white = (cross - np.outer(of_counts, centre)) @ whitening / (total + kept.sum() / mean)[:, None]
    weight = white @ whitening.T

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(cells.device)

    # The variance of the counts about their mean, less that of Poisson counts.
    excess = of_squares - 2 * mean * of_depth + np.square(mean) * squared_depth - of_counts
    theta = np.square(mean) * squared_depth / np.maximum(excess, np.finfo(np.float64).tiny)
    head = LinearHead(tensor(weight), tensor(mean - weight @ centre), tensor(SMALLEST_SHARE * mean))
    return head, tensor(np.clip(theta, *DISPERSION_RANGE))


def _hidden(module: VAE, minibatch: Minibatch) -> tuple[np.ndarray, np.ndarray]:
    posterior = module.encode(minibatch)
    hidden = module.decode_hidden(posterior.qz.loc, minibatch).cpu().double().numpy()
    log_library = None if posterior.log_library is None else posterior.log_library.loc
    return hidden, module.depth(minibatch, log_library).cpu().double().numpy()


def _sparse_counts(rows: sp.csr_matrix) -> SparseCounts:
    cell_index = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    return SparseCounts(
        torch.from_numpy(rows.data),
        torch.from_numpy(cell_index),
        torch.from_numpy(rows.indices).to(torch.int64),
        *rows.shape,
    )
