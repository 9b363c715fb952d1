"""Layers whose derivatives are written down rather than recorded: forwards, and backwards into the parameters."""

from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scvae_ext.kernels import gaussian_sample, gaussian_sample_backward, sparse_product, transposed_sparse_product
from scvae_ext.minibatch import SparseCounts
from scvae_ext.nn.encoder import LOG_VARIANCE_LIMIT, Encoder
from scvae_ext.nn.mlp import MLP, Layer
from scvae_ext.nn.normalised import n_levels_kept, normalised_rows, normalised_rows_backward
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
    """One pass of a minibatch through a perceptron in training, on a CPU and in single precision.

    Parameters
    ----------
    mlp
        The perceptron.
    columns
        Covariate columns of each cell.
    """

    def __init__(self, mlp: MLP, columns: Float[Tensor, "cells covariates"]) -> None:
        self._passes = [_LayerPass(cast(Layer, layer), columns) for layer in mlp.layers]

    def forward(self, x: Float[Tensor, "cells n_in"] | SparseCounts) -> Float[Tensor, "cells hidden"]:
        """Return the activations of the last layer.

        Parameters
        ----------
        x
            Input, dense or as sparse counts.
        """
        hidden = self._passes[0].forward(x)
        for layer in self._passes[1:]:
            hidden = layer.forward(hidden)
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
    def __init__(self, layer: Layer, columns: Float[Tensor, "cells covariates"]) -> None:
        if layer.batch_norm is None:
            raise TypeError("There are no hand-derived gradients of a layer without batch normalisation.")
        self._linear, self._batch_norm, self._dropout_rate = layer.linear, layer.batch_norm, layer.dropout_rate
        self._covariates, self._columns = layer.covariates, columns

    def forward(self, x: Tensor | SparseCounts) -> Tensor:
        linear = self._linear
        weight = linear.weight.detach()
        if isinstance(x, SparseCounts) and not (isinstance(linear, SparseLinear) and linear.as_sum(x)):
            x = x.dense()
        self._x = x
        if isinstance(x, SparseCounts):
            product = torch.from_numpy(sparse_product(*x.by_cell, weight.numpy()))
        else:
            product = x @ (weight if isinstance(linear, SparseLinear) else weight.T)
        if self._covariates is not None:
            product.addmm_(self._columns, self._covariates.weight.detach().T)
        output, self._arrays = normalised_rows(product, self._batch_norm, self._dropout_rate)
        return output

    def backward(self, grad: Tensor) -> Tensor:
        """Set all gradients, and return the derivative by the product with the weight."""
        x, linear = self._x, self._linear
        by_product, self._batch_norm.weight.grad, self._batch_norm.bias.grad = normalised_rows_backward(
            grad, self._arrays
        )
        if self._covariates is not None:
            self._covariates.weight.grad = by_product.T @ self._columns
        if isinstance(x, SparseCounts):
            by_weight = transposed_sparse_product(*x.by_cell, by_product.numpy(), x.n_genes)
            linear.weight.grad = torch.from_numpy(by_weight)
        else:
            linear.weight.grad = x.T @ by_product if isinstance(linear, SparseLinear) else by_product.T @ x
        return by_product

    def through_linear(self, by_product: Tensor) -> Tensor:
        weight = self._linear.weight.detach()
        return by_product @ (weight.T if isinstance(self._linear, SparseLinear) else weight)


class PosteriorPass:
    """From the last activations of an encoder to a sample of the Gaussian posterior, and its divergence.

    Parameters
    ----------
    encoder
        The encoder.
    """

    LIMIT = np.float32(LOG_VARIANCE_LIMIT)

    def __init__(self, encoder: Encoder) -> None:
        self._heads: tuple[nn.Linear, nn.Linear] = (encoder.mean, encoder.log_variance)

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
        mean, log_variance = (
            torch.addmm(head.bias.detach(), hidden, head.weight.detach().T).numpy() for head in self._heads
        )
        sample, std, divergence = gaussian_sample(mean, log_variance, noise.numpy(), self.LIMIT)
        self._arrays = mean, log_variance, noise.numpy(), std
        return torch.from_numpy(sample), torch.from_numpy(divergence)

    def backward(self, grad: Float[Tensor, "cells latent"], of_divergence: float) -> Float[Tensor, "cells hidden"]:
        """Set the gradients of both heads, and return the derivative by the activations.

        Parameters
        ----------
        grad
            Derivative by the sample.
        of_divergence
            Derivative by the divergence of each cell.
        """
        by_heads = gaussian_sample_backward(grad.numpy(), *self._arrays, self.LIMIT, np.float32(of_divergence))
        by_hidden = torch.zeros_like(self._hidden)
        for head, array in zip(self._heads, by_heads, strict=True):
            by_output = torch.from_numpy(array)
            head.weight.grad, head.bias.grad = by_output.T @ self._hidden, by_output.sum(0)
            by_hidden.addmm_(by_output, head.weight.detach())
        return by_hidden
