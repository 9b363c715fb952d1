"""Networks: the covariates' columns, the multilayer perceptron, the encoders and the output heads."""

from scvae_ext.nn.covariates import BatchRepresentation, CovariateColumns
from scvae_ext.nn.dispersion import Dispersion, DispersionKind
from scvae_ext.nn.encoder import Encoder, LibraryEncoder
from scvae_ext.nn.hand_derived import PerceptronPass, PosteriorPass, has_hand_derived_pass
from scvae_ext.nn.heads import RESIDUAL_SCALE, ExpressionHead, LogExpressionHead, MeanHead
from scvae_ext.nn.inputs import with_further_inputs
from scvae_ext.nn.linear_decoder import LinearDecoder, Loadings
from scvae_ext.nn.mlp import MLP, Layer, Normalisation
from scvae_ext.nn.sparse_linear import SparseLinear
from scvae_ext.nn.zero_inflation import ZeroInflationHead, ZeroInflationKind

__all__ = [
    "MLP",
    "RESIDUAL_SCALE",
    "BatchRepresentation",
    "CovariateColumns",
    "Dispersion",
    "DispersionKind",
    "Encoder",
    "ExpressionHead",
    "Layer",
    "LibraryEncoder",
    "LinearDecoder",
    "Loadings",
    "LogExpressionHead",
    "MeanHead",
    "Normalisation",
    "PerceptronPass",
    "PosteriorPass",
    "SparseLinear",
    "ZeroInflationHead",
    "ZeroInflationKind",
    "has_hand_derived_pass",
    "with_further_inputs",
]
