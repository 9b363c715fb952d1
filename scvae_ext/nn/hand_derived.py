"""Layers whose derivatives are written down rather than recorded: forwards, and backwards into the parameters."""

from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scvae_ext.kernels import (
    dense_product,
    gaussian_sample,
    gaussian_sample_backward,
    sparse_product,
    transposed_dense_product,
    transposed_sparse_product,
)
from scvae_ext.minibatch import SparseCounts
from scvae_ext.nn.encoder import LOG_VARIANCE_LIMIT, Encoder
from scvae_ext.nn.mlp import MLP, Layer
from scvae_ext.nn.normalised import NormalisedRows, n_levels_kept
from scvae_ext.nn.sparse_linear import SparseLinear

__all__ = ["PerceptronPass", "PosteriorPass", "has_hand_derived_pass"]


def has_hand_derived_pass(mlp: MLP) -> bool:
    """Whether there is a :class:`PerceptronPass` of a perceptron: all its layers have batch normalisation.

    Parameters
    ----------
    mlp
        The perceptron.
    """
    layers = [cast(Layer, layer) for layer in mlp.layers]
    return all(layer.batch_norm is not None and n_levels_kept(layer.dropout_rate) > 0 for layer in layers)


class PerceptronPass:
    """Minibatches on their way through a perceptron in training, on a CPU and in single precision, one at a time.

    It reads what the layers hold where that lies now: it is for some minibatches, and not to be kept.

    Parameters
    ----------
    mlp
        The perceptron.
    """

    def __init__(self, mlp: MLP) -> None:
        self._passes = [_LayerPass(cast(Layer, layer)) for layer in mlp.layers]

    def forward(
        self, x: Float[Tensor, "cells n_in"] | SparseCounts, columns: Float[Tensor, "cells covariates"]
    ) -> Float[Tensor, "cells hidden"]:
        """Return the activations of the last layer.

        Parameters
        ----------
        x
            Input, dense or as sparse counts.
        columns
            Covariate columns of each cell.
        """
        hidden = self._passes[0].forward(x, columns)
        for layer in self._passes[1:]:
            hidden = layer.forward(hidden, columns)
        return hidden

    def backward(
        self, grad: Float[Tensor, "cells hidden"], *, as_far_as_the_input: bool = True
    ) -> Float[Tensor, "cells n_in"] | None:
        """Set the gradients of all parameters, and return the derivative by the input.

        Parameters
        ----------
        grad
            Derivative by the activations.
        as_far_as_the_input
            Whether that is wanted; ``None`` is returned where not.
        """
        for layer in self._passes[:0:-1]:
            grad = layer.through_linear(layer.backward(grad))
        by_first = self._passes[0].backward(grad)
        return self._passes[0].through_linear(by_first) if as_far_as_the_input else None


class _LayerPass:
    def __init__(self, layer: Layer) -> None:
        if layer.batch_norm is None:
            raise TypeError("There are no hand-derived gradients of a layer without batch normalisation.")
        linear = layer.linear
        self._linear, self._weight = linear, linear.weight
        # As a sparse layer holds it: inputs by outputs.
        self._matrix = linear.weight.detach() if isinstance(linear, SparseLinear) else linear.weight.detach().T
        self._rows, self._scale = NormalisedRows(layer.batch_norm, layer.dropout_rate), layer.batch_norm.weight
        self._shift = layer.batch_norm.bias
        self._of_columns = None if layer.covariates is None else layer.covariates.weight

    def forward(self, x: Tensor | SparseCounts, columns: Tensor) -> Tensor:
        linear = self._linear
        if isinstance(x, SparseCounts) and not (isinstance(linear, SparseLinear) and linear.as_sum(x)):
            x = x.dense()
        self._x, self._columns = x, columns
        if isinstance(x, SparseCounts):
            product = torch.from_numpy(sparse_product(*x.by_cell, self._matrix.numpy()))
        else:
            product = dense_product(x, self._matrix.T)
        if self._of_columns is not None:
            product.addmm_(columns, self._of_columns.detach().T)
        return self._rows.forward(product)

    def backward(self, grad: Tensor) -> Tensor:
        """Set all gradients, and return the derivative by the product with the weight."""
        x = self._x
        by_product, self._scale.grad, self._shift.grad = self._rows.backward(grad)
        if self._of_columns is not None:
            self._of_columns.grad = by_product.T @ self._columns
        if isinstance(x, SparseCounts):
            by_weight = transposed_sparse_product(*x.by_cell, by_product.numpy(), x.n_genes)
            self._weight.grad = torch.from_numpy(by_weight)
        else:
            is_turned = isinstance(self._linear, SparseLinear)
            self._weight.grad = transposed_dense_product(*((x, by_product) if is_turned else (by_product, x)))
        return by_product

    def through_linear(self, by_product: Tensor) -> Tensor:
        return dense_product(by_product, self._matrix)


class PosteriorPass:
    """From the last activations of an encoder to a sample of the Gaussian posterior, and its divergence.

    It reads what the encoder holds where that lies now: it is for some minibatches, and not to be kept.

    Parameters
    ----------
    encoder
        The encoder.
    """

    LIMIT = np.float32(LOG_VARIANCE_LIMIT)

    def __init__(self, encoder: Encoder) -> None:
        heads = encoder.mean, encoder.log_variance
        self._weights, self._biases = [head.weight for head in heads], [head.bias for head in heads]
        self._values = [(head.bias.detach(), head.weight.detach()) for head in heads]

    def forward(
        self, hidden: Float[Tensor, "cells hidden"], noise: Float[Tensor, "cells latent"]
    ) -> tuple[Float[Tensor, "cells latent"], Float[Tensor, "cells"]]:
        """Return a sample of each cell, and the divergence of its posterior from a standard normal, in nats.

        Parameters
        ----------
        hidden
            Activations.
        noise
            Standard normal.
        """
        self._hidden = hidden
        (bias, weight), (log_bias, log_weight) = self._values
        mean = torch.addmm(bias, hidden, weight.T).numpy()
        log_variance = torch.addmm(log_bias, hidden, log_weight.T).numpy()
        epsilon = noise.numpy()
        sample, std, divergence = gaussian_sample(mean, log_variance, epsilon, self.LIMIT)
        self._arrays = mean, log_variance, epsilon, std
        return torch.from_numpy(sample), torch.from_numpy(divergence)

    @property
    def mean(self) -> Float[Tensor, "cells latent"]:
        """Mean of the posterior of each cell that went forward last."""
        return torch.from_numpy(self._arrays[0])

    def backward(
        self,
        grad: Float[Tensor, "cells latent"],
        of_divergence: float,
        by_mean: Float[Tensor, "cells latent"] | None = None,
    ) -> Float[Tensor, "cells hidden"]:
        """Set the gradients of both heads, and return the derivative by the activations.

        Parameters
        ----------
        grad
            Derivative by the sample.
        of_divergence
            Derivative by the divergence of each cell.
        by_mean
            Derivative by the posterior mean, where something reads that itself.
        """
        by_heads = gaussian_sample_backward(grad.numpy(), *self._arrays, self.LIMIT, np.float32(of_divergence))
        if by_mean is not None:
            by_heads[0][:] += by_mean.numpy()
        by_hidden = torch.empty_like(self._hidden)
        for position, (array, (_, weight)) in enumerate(zip(by_heads, self._values, strict=True)):
            by_output = torch.from_numpy(array)
            self._weights[position].grad = by_output.T @ self._hidden
            self._biases[position].grad = by_output.sum(0)
            # What is added to with a factor of zero is not read.
            by_hidden.addmm_(by_output, weight, beta=min(position, 1))
        return by_hidden
