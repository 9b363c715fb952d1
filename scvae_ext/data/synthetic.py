"""Simulated counts whose truth is known."""

from typing import Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Float, Int

from scvae_ext.data.synthetic_peaks import draw_peaks
from scvae_ext.data.synthetic_proteins import draw_proteins

__all__ = ["synthetic_counts"]

_Likelihood = Literal["nb", "zinb", "poisson"]

_LOG_GENE_SD = 1.5
_LOADING_SD = 0.5
_BATCH_EFFECT_SD = 0.4
_LOG_LIBRARY_SD = 0.4
_TYPE_SD = 2.0
_LOG_INVERSE_DISPERSION_SD = 0.5
_ZERO_INFLATION_CONCENTRATION = 10.0
_ATTEMPTS = 100


def synthetic_counts(
    n_cells: int = 1000,
    n_genes: int = 500,
    *,
    n_types: int = 5,
    n_batches: int = 1,
    n_latent: int = 5,
    likelihood: _Likelihood = "nb",
    library_size: float = 1000.0,
    inverse_dispersion: float = 2.0,
    zero_inflation: float = 0.2,
    n_proteins: int = 0,
    n_peaks: int = 0,
    seed: int = 0,
) -> AnnData:
    r"""Simulate counts from a known model of low dimension.

    Each cell :math:`n` of type :math:`t` and batch :math:`b` gets

    .. math::

        z_n \sim N(\mu_t, I), \quad
        \rho_n = \operatorname{softmax}(a + W z_n + \beta_b), \quad
        \log \ell_n \sim N(\log L, 0.4^2), \quad
        x_{ng} \sim p(x \mid \ell_n \rho_{ng}, \theta_g, \pi_g)

    where :math:`p` is negative binomial with variance :math:`m + m^2/\theta`, zero with a further probability
    :math:`\pi_g` (``"zinb"``), or Poisson. A cell that gets no counts at all is drawn again.

    Surface proteins, where asked for, are there in some types (in 95 % of their cells, and in 5 % of the others'):

    .. math::

        y_{np} \sim \operatorname{NB}(\beta_{bp} \alpha_p^{f_{np}} e^{v_p^\top (z_n - \mu_t) f_{np}}, \theta_p), \quad
        f_{np} \in \{0, 1\}

    with background :math:`\beta` of a median of 10 counts, which differs between batches by a factor, and
    :math:`\alpha` between 3 and 30. Accessibility of chromatin, where asked for, is

    .. math::

        a_{np} \sim \operatorname{Bernoulli}(1 - e^{-d_n \lambda_{np}}), \quad
        \log \lambda_{np} = c_p + u_p^\top z_n + \gamma_{bp}, \quad \log d_n \sim N(0, 0.5^2)

    Parameters
    ----------
    n_cells, n_genes
        Size of the matrix.
    n_types
        Number of cell types, of equal size.
    n_batches
        Number of experimental batches, of equal size and drawn independently of the types.
    n_latent
        Dimensions of the latent space.
    likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"``.
    library_size
        Median expected number of counts of a cell, :math:`L`, before zero inflation.
    inverse_dispersion
        Median of :math:`\theta_g` over the genes. Not used by ``"poisson"``.
    zero_inflation
        Mean of :math:`\pi_g` over the genes. Used by ``"zinb"`` alone.
    n_proteins
        Number of surface proteins; none by default.
    n_peaks
        Number of peaks of accessible chromatin; none by default.
    seed
        Seed of all draws.

    Returns
    -------
    anndata.AnnData
        ``X``: counts (CSR, float32). ``obs["cell_type"]``, ``obs["batch"]``: categories.
        ``obs["library_size"]``: :math:`\ell_n`, in counts. ``obsm["latent"]``: :math:`z`.
        ``layers["expression"]``: :math:`\rho`, sums to 1 per cell. ``layers["mean"]``: :math:`\ell\rho`, expected
        counts before zero inflation. ``var["log_baseline"]``: :math:`a`. ``varm["loadings"]``: :math:`W`.
        ``varm["batch_effect"]``: :math:`\beta`, one column a batch. ``var["inverse_dispersion"]``: :math:`\theta`,
        infinite for ``"poisson"``. ``var["zero_inflation"]``: :math:`\pi`, 0 where there is none.
        ``uns["truth"]``: the arguments. With proteins, each a data frame of cells by proteins: ``obsm["protein"]``,
        counts; ``obsm["protein_foreground"]``, one where the protein is there; ``obsm["protein_mean"]``, expected
        counts; ``obsm["protein_background"]``, :math:`\beta`. With peaks: ``obsm["accessibility"]``, ones (CSR);
        ``obsm["accessibility_rate"]``, :math:`\lambda`; ``obs["accessibility_depth"]``, :math:`d`; ``uns["peaks"]``,
        their names.

    Raises
    ------
    ValueError
        If an argument is out of its range, or so few counts are expected that cells stay empty.

    Examples
    --------
    >>> from scvae_ext.datasets import synthetic_counts
    >>> adata = synthetic_counts(100, 50, n_batches=2)
    >>> adata.layers["expression"].sum(1).round(4).tolist()[:2]
    [1.0, 1.0]
    """
    sizes = {"n_cells": n_cells, "n_genes": n_genes, "n_types": n_types, "n_batches": n_batches, "n_latent": n_latent}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, but is {size}.")
    for name, value in {"library_size": library_size, "inverse_dispersion": inverse_dispersion}.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be finite and greater than 0, but is {value}.")
    if n_proteins < 0:
        raise ValueError(f"n_proteins must be at least 0, but is {n_proteins}.")
    if n_peaks < 0:
        raise ValueError(f"n_peaks must be at least 0, but is {n_peaks}.")
    if not 0 <= zero_inflation < 1:
        raise ValueError(f"zero_inflation must be at least 0 and below 1, but is {zero_inflation}.")
    if likelihood not in get_args(_Likelihood):
        raise ValueError(f"likelihood must be one of {get_args(_Likelihood)}, but is {likelihood!r}.")
    generator = np.random.default_rng(seed)
    cell_type = generator.permutation(np.arange(n_cells) % n_types)
    batch = generator.permutation(np.arange(n_cells) % n_batches)
    centres = generator.normal(0, _TYPE_SD, (n_types, n_latent))
    latent = centres[cell_type] + generator.normal(size=(n_cells, n_latent))
    baseline = generator.normal(0, _LOG_GENE_SD, n_genes)
    loadings = generator.normal(0, _LOADING_SD / np.sqrt(n_latent), (n_genes, n_latent))
    batch_effect = generator.normal(0, _BATCH_EFFECT_SD, (n_genes, n_batches)) * (n_batches > 1)
    log_expression = baseline + latent @ loadings.T + batch_effect.T[batch]
    log_expression -= log_expression.max(axis=1, keepdims=True)
    expression = np.exp(log_expression)
    expression /= expression.sum(axis=1, keepdims=True)
    depth = library_size * np.exp(generator.normal(0, _LOG_LIBRARY_SD, n_cells))
    mean = depth[:, None] * expression
    theta = np.full(n_genes, np.inf)
    if likelihood != "poisson":
        theta = inverse_dispersion * np.exp(generator.normal(0, _LOG_INVERSE_DISPERSION_SD, n_genes))
    pi = np.zeros(n_genes)
    if likelihood == "zinb" and zero_inflation > 0:
        concentration = _ZERO_INFLATION_CONCENTRATION
        pi = generator.beta(zero_inflation * concentration, (1 - zero_inflation) * concentration, n_genes)
    counts = _draw(generator, mean, theta, pi)
    truth = {
        "likelihood": likelihood,
        "library_size": library_size,
        "inverse_dispersion": inverse_dispersion,
        "zero_inflation": zero_inflation,
        "seed": seed,
    }
    adata = AnnData(
        sp.csr_matrix(counts, dtype=np.float32),
        obs=pd.DataFrame(
            {
                "cell_type": _categories("type", cell_type, n_types),
                "batch": _categories("batch", batch, n_batches),
                "library_size": depth,
            },
            index=[f"cell_{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(
            {"log_baseline": baseline, "inverse_dispersion": theta, "zero_inflation": pi},
            index=[f"gene_{i}" for i in range(n_genes)],
        ),
        obsm={"latent": latent.astype(np.float32)},
        varm={"loadings": loadings, "batch_effect": batch_effect},
        layers={"expression": expression.astype(np.float32), "mean": mean.astype(np.float32)},
        uns={"truth": truth},
    )
    if n_proteins:
        proteins = draw_proteins(generator, n_proteins, cell_type, batch, latent - centres[cell_type])
        names = [f"protein_{i}" for i in range(n_proteins)]
        for key, values in proteins.items():
            adata.obsm[key] = pd.DataFrame(values.astype(np.float32), index=adata.obs_names, columns=names)
    if n_peaks:
        accessible, rate, adata.obs["accessibility_depth"] = draw_peaks(generator, n_peaks, latent, batch)
        adata.obsm["accessibility"] = sp.csr_matrix(accessible, dtype=np.float32)
        adata.obsm["accessibility_rate"] = rate.astype(np.float32)
        adata.uns["peaks"] = np.array([f"peak_{i}" for i in range(n_peaks)])
    return adata


def _draw(
    generator: np.random.Generator,
    mean: Float[np.ndarray, "cells genes"],
    theta: Float[np.ndarray, "genes"],
    pi: Float[np.ndarray, "genes"],
) -> Float[np.ndarray, "cells genes"]:
    counts = np.zeros_like(mean)
    empty = np.ones(len(mean), dtype=bool)
    for _ in range(_ATTEMPTS):
        rate = mean[empty]
        if np.isfinite(theta).all():
            rate = generator.gamma(theta, rate / theta)
        drawn = generator.poisson(rate)
        drawn[generator.random(rate.shape) < pi] = 0
        counts[empty] = drawn
        empty = counts.sum(axis=1) == 0
        if not empty.any():
            return counts
    raise ValueError(
        f"{empty.sum()} of {len(mean)} cells got no counts in {_ATTEMPTS} attempts. Raise library_size or n_genes."
    )


def _categories(prefix: str, codes: Int[np.ndarray, "cells"], n: int) -> pd.Categorical:
    names = [f"{prefix}_{i}" for i in range(n)]
    return pd.Categorical([names[code] for code in codes], categories=names)
