"""Networks: the covariates' columns, the multilayer perceptron, the encoders and the output heads."""

from scvae_ext.nn.covariates import BatchRepresentation, CovariateColumns
from scvae_ext.nn.encoder import Encoder, LibraryEncoder
from scvae_ext.nn.heads import Dispersion, DispersionKind, ExpressionHead, LogExpressionHead, ZeroInflationHead
from scvae_ext.nn.mlp import MLP, Normalisation

__all__ = [
    "MLP",
    "BatchRepresentation",
    "CovariateColumns",
    "Dispersion",
    "DispersionKind",
    "Encoder",
    "ExpressionHead",
    "LibraryEncoder",
    "LogExpressionHead",
    "Normalisation",
    "ZeroInflationHead",
]
