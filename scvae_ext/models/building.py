"""From the options that users pass to the module of a model."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from scvae_ext.data import Registry
from scvae_ext.likelihoods import COUNT_LIKELIHOODS
from scvae_ext.models.options import true_or_false, whole_number
from scvae_ext.modules import VAE
from scvae_ext.nn import Normalisation
from scvae_ext.nn.precision import single_precision

__all__ = ["FIXED_OPTIONS", "Normalised", "build_vae", "refuse_beside_modalities"]

Normalised = Literal["encoder", "decoder", "none", "both"]

FIXED_OPTIONS: Mapping[str, Any] = {
    "use_observed_lib_size": True,
    "deeply_inject_covariates": True,
    "use_batch_norm": "both",
    "use_layer_norm": "none",
}
"""What SCVAE leaves to the user, and other models do not, but for what they have an option for."""


@single_precision()
def build_vae(
    registry: Registry,
    options: Mapping[str, Any],
    n_factors: int = 0,
    *,
    n_known_labels: int | None = None,
    n_components_per_label: int = 1,
) -> VAE:
    """Build the module for data of a registry.

    Parameters
    ----------
    registry
        The data.
    options
        Options of the model.
    n_factors
        Number of residual factors: none before training, later those that were kept.
    n_known_labels
        Number of labels that the prior knows; ``None`` for none.
    n_components_per_label
        Number of Gaussians of each.

    Raises
    ------
    TypeError, ValueError
        If an option is not valid, or does not fit the data or another; the message says what to pass instead.
    """
    _check_options(registry, options)
    own = ("use_batch_norm", "use_layer_norm", "n_prior_components", "residual_rank")
    module = VAE(
        registry.n_genes,
        n_batches=registry.n_batches,
        n_labels=registry.n_labels,
        n_categories=registry.n_categories_per_covariate,
        n_continuous=registry.n_continuous_covariates,
        use_size_factor=registry.size_factor_key is not None,
        encoder_normalisation=_normalisation(options, "encoder"),
        decoder_normalisation=_normalisation(options, "decoder"),
        peaks_measured=None if registry.peaks is None else registry.peaks.measured,
        n_peaks=None if registry.peaks is None else len(registry.peaks.names),
        **(_prior_components(options) if n_known_labels is None else {"n_prior_components": n_components_per_label}),
        residual_rank=n_factors,
        n_known_labels=n_known_labels,
        proteins_measured=None if registry.proteins is None else registry.proteins.measured,
        **{name: value for name, value in options.items() if name not in own},
    )
    if options["gene_likelihood"] in COUNT_LIKELIHOODS:
        registry.require_counts(options["gene_likelihood"])
    return module


def refuse_beside_modalities(options: Mapping[str, Any], what: str) -> None:
    """Raise where options do not go with other values than genes.

    Parameters
    ----------
    options
        Options of the model.
    what
        Name of the other values.

    Raises
    ------
    ValueError
        If they do not; the message says what to pass instead.
    """
    if options["gene_likelihood"] == "normal":
        raise ValueError(
            'gene_likelihood="normal" gives densities of log-normalised values, which do not add up with '
            f'probabilities of {what}: use "nb", "zinb" or "poisson".'
        )
    if options["prior"] == "vamp":
        raise ValueError(
            f'prior="vamp" learns cells that it encodes, and knows no {what}: use "standard" or "mixture".'
        )


def _check_options(registry: Registry, options: Mapping[str, Any]) -> None:
    """Raise where options are not valid, or do not fit the data or one another."""
    for name in ("use_observed_lib_size", "encode_covariates", "deeply_inject_covariates"):
        true_or_false(name, options[name])
    # Models saved before there were residual factors have no such option.
    whole_number("residual_rank", options.get("residual_rank", 0), least=0)
    if registry.size_factor_key is not None and not options["use_observed_lib_size"]:
        raise ValueError(
            f"use_observed_lib_size=False asks for a latent library size, but size_factor_key="
            f"{registry.size_factor_key!r} takes its place: leave one of the two out."
        )
    if options["gene_likelihood"] == "normal" and not options["use_observed_lib_size"]:
        raise ValueError(
            'use_observed_lib_size=False has no meaning for gene_likelihood="normal", whose values are normalised '
            "by the observed library size: leave it at True."
        )


def _prior_components(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the number of Gaussians of the prior; models saved before there was a choice have neither option."""
    prior, n_components = options.get("prior", "standard"), options.get("n_prior_components")
    if n_components is None:
        return {}
    if prior == "standard":
        raise ValueError(
            f'n_prior_components={n_components!r} has no meaning for prior="standard": leave it out, or pass '
            'prior="mixture" or prior="vamp".'
        )
    return {"n_prior_components": whole_number("n_prior_components", n_components)}


def _normalisation(options: Mapping[str, Any], network: str) -> Normalisation:
    """Resolve the two options of scvi-tools into one for a network."""
    chosen: list[Normalisation] = []
    for kind in get_args(Normalisation)[:2]:
        value = options[f"use_{kind}_norm"]
        if value not in ("encoder", "decoder", "none", "both"):
            raise ValueError(f'use_{kind}_norm={value!r} is not known: use "encoder", "decoder", "both" or "none".')
        if value in (network, "both"):
            chosen.append(kind)
    if len(chosen) == 2:
        raise ValueError(
            f"use_batch_norm={options['use_batch_norm']!r} and use_layer_norm={options['use_layer_norm']!r} both "
            f'normalise the {network}: set one of them to "none".'
        )
    return chosen[0] if chosen else "none"
