"""The multilayer perceptron shared by encoders and decoders."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from scvae_ext.minibatch import SparseCounts
from scvae_ext.nn.normalised import normalise_and_rectify
from scvae_ext.nn.sparse_linear import SparseLinear

__all__ = ["MLP", "Layer", "Normalisation"]

Normalisation = Literal["batch", "layer", "none"]

BATCH_NORM_EPS = 1e-3


class Layer(nn.Module):
    """Linear map of the input and of the covariates, normalisation, ReLU, dropout.

    Parameters
    ----------
    n_in, n_out
        Number of inputs and of units.
    n_covariates, normalisation, dropout_rate
        As for :class:`MLP`.
    sparse
        Whether the input may be sparse counts.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_covariates: int,
        normalisation: Normalisation,
        dropout_rate: float,
        sparse: bool,
    ) -> None:
        super().__init__()
        # Batch normalisation subtracts any bias again: a bias before it would never receive a gradient.
        self.linear = (SparseLinear if sparse else nn.Linear)(n_in, n_out, bias=normalisation != "batch")
        self.covariates = nn.Linear(n_covariates, n_out, bias=False) if n_covariates else None
        self.batch_norm = nn.BatchNorm1d(n_out, eps=BATCH_NORM_EPS) if normalisation == "batch" else None
        self.layer_norm = nn.LayerNorm(n_out) if normalisation == "layer" else None
        self.dropout_rate = dropout_rate

    def forward(
        self, x: Float[Tensor, "*samples cells n_in"] | SparseCounts, covariates: Float[Tensor, "cells covariates"]
    ) -> Float[Tensor, "*samples cells hidden"]:
        """Return the activations.

        Parameters
        ----------
        x, covariates
            As for :meth:`MLP.forward`.
        """
        hidden: Tensor = self.linear(x)
        if self.covariates is not None:
            hidden = hidden + self.covariates(covariates)
        if self.batch_norm is not None:
            return normalise_and_rectify(hidden, self.batch_norm, self.dropout_rate, self.training)
        if self.layer_norm is not None:
            hidden = self.layer_norm(hidden)
        return nn.functional.dropout(hidden.relu(), self.dropout_rate, self.training)


class MLP(nn.Module):
    """Fully connected layers, each followed by normalisation, ReLU and dropout.

    Parameters
    ----------
    n_in, n_hidden, n_layers
        Number of inputs, units of a layer, and layers.
    n_covariates
        Number of covariate columns.
    inject_everywhere
        Whether every layer sees the covariates, or only the first.
    normalisation
        What follows each linear map.
    dropout_rate
        Probability that a unit is left out in training.
    sparse_input
        Whether the input may be sparse counts.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_layers: int = 1,
        n_covariates: int = 0,
        *,
        inject_everywhere: bool = True,
        normalisation: Normalisation = "batch",
        dropout_rate: float = 0.0,
        sparse_input: bool = False,
    ) -> None:
        super().__init__()
        self.n_out = n_hidden
        self.layers = nn.ModuleList(
            Layer(
                n_hidden if depth else n_in,
                n_hidden,
                n_covariates if inject_everywhere or depth == 0 else 0,
                normalisation,
                dropout_rate,
                sparse_input and depth == 0,
            )
            for depth in range(n_layers)
        )

    def forward(
        self, x: Float[Tensor, "*samples cells n_in"] | SparseCounts, covariates: Float[Tensor, "cells covariates"]
    ) -> Float[Tensor, "*samples cells hidden"]:
        """Return the activations of the last layer.

        Parameters
        ----------
        x
            Input of each cell, with any number of leading axes of samples, or sparse counts.
        covariates
            Covariate columns of each cell.
        """
        hidden: Tensor = self.layers[0](x, covariates)
        for layer in self.layers[1:]:
            hidden = layer(hidden, covariates)
        return hidden
