"""Batches and covariates as the columns that a network can read."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scvae_ext.minibatch import Minibatch
from scvae_ext.types import CellIndices

__all__ = ["BatchRepresentation", "CovariateColumns"]

BatchRepresentation = Literal["one-hot", "embedding"]


class CovariateColumns(nn.Module):
    """Batch, categorical and continuous covariates side by side.

    Parameters
    ----------
    n_batches
        Number of batches; a single one needs no column.
    n_categories
        Number of categories of each categorical covariate.
    n_continuous
        Number of continuous covariates.
    batch_representation
        ``"one-hot"``, a column a batch, or ``"embedding"``, a learned vector a batch.
    embedding_dim
        Length of that vector.
    """

    def __init__(
        self,
        n_batches: int,
        n_categories: Sequence[int] = (),
        n_continuous: int = 0,
        batch_representation: BatchRepresentation = "one-hot",
        embedding_dim: int = 5,
    ) -> None:
        super().__init__()
        self.n_batches = n_batches
        self.n_categories = tuple(n_categories)
        self.embedding = (
            nn.Embedding(n_batches, embedding_dim) if batch_representation == "embedding" and n_batches > 1 else None
        )
        n_batch_columns = 0 if n_batches == 1 else embedding_dim if self.embedding is not None else n_batches
        self.n_columns = n_batch_columns + sum(self.n_categories) + n_continuous
        self._n_continuous = n_continuous

    @property
    def batch_columns(self) -> slice:
        """Which of the columns belong to one batch each: none for a single batch, nor for embeddings."""
        n_batch_columns = 0 if self.n_batches == 1 or self.embedding is not None else self.n_batches
        return slice(self._n_continuous, self._n_continuous + n_batch_columns)

    def forward(self, minibatch: Minibatch, batch: CellIndices | None = None) -> Float[Tensor, "cells covariates"]:
        """Return the columns of each cell.

        Parameters
        ----------
        minibatch
            The cells.
        batch
            Batches to use in place of the observed ones.
        """
        batch = minibatch.batch if batch is None else batch
        columns = [minibatch.continuous_covariates]
        if self.embedding is not None:
            columns.append(self.embedding(batch))
        elif self.n_batches > 1:
            columns.append(_one_hot(batch, self.n_batches, columns[0].dtype))
        columns += [
            _one_hot(category, n, columns[0].dtype)
            for category, n in zip(minibatch.categorical_covariates.unbind(1), self.n_categories, strict=True)
        ]
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)

    def last_batches(self, batch: CellIndices, n: int) -> Float[Tensor, "cells last"]:
        """Return a column for each of the last few batches, one for its cells and zero for others.

        Parameters
        ----------
        batch
            Batch of each cell.
        n
            Number of columns.
        """
        last = torch.arange(self.n_batches - n, self.n_batches, device=batch.device)
        return (batch.unsqueeze(-1) == last).float()


def _one_hot(category: CellIndices, n: int, dtype: torch.dtype) -> Float[Tensor, "cells categories"]:
    return functional.one_hot(category, n).to(dtype)
