"""A VAE that knows more batches than the one whose weights it has, and fewer genes."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from minibatches import make_minibatch

from scvae_ext.minibatch import SparseCounts
from scvae_ext.modules import VAE, copy_reference
from scvae_ext.nn import LinearDecoder
from scvae_ext.peaks import AccessiblePeaks

N_GENES, N_PEAKS = 7, 9
SIZES = {"n_hidden": 16, "n_latent": 3, "n_categories": (2,), "n_continuous": 1}
KINDS = {
    "nb": {},
    "zinb": {"gene_likelihood": "zinb", "dispersion": "gene-cell", "zero_inflation_prior": (1.0, 9.0)},
    "zinb by gene": {"gene_likelihood": "zinb", "zero_inflation": "gene"},
    "gene-batch": {"dispersion": "gene-batch"},
    "normal": {"gene_likelihood": "normal"},
    "mixture": {"prior": "mixture", "n_prior_components": 4},
    "vamp": {"prior": "vamp", "n_prior_components": 4},
    "vamp with covariates": {"prior": "vamp", "n_prior_components": 4, "encode_covariates": True},
    "latent library": {"use_observed_lib_size": False},
    "linear": {"decoder": "linear"},
    "linear zinb": {"decoder": "linear", "gene_likelihood": "zinb", "dispersion": "gene-cell"},
    "two layers": {"n_layers": 2, "encode_covariates": True},
    "first layer": {"n_layers": 2, "deeply_inject_covariates": False},
    "layer norm": {"encoder_normalisation": "layer", "decoder_normalisation": "layer"},
    "embedding": {"batch_representation": "embedding"},
    "factors": {"residual_rank": 2},
    "proteins": {"proteins_measured": True},
    "proteins with covariates": {"proteins_measured": True, "encode_covariates": True},
    "peaks": {"peaks_measured": True, "n_peaks": N_PEAKS},
}
N_PROTEINS = 3
OF_BATCHES = ("covariates.embedding.weight", "proteins.likelihood.log_background")


def extended(kind, n_known, n_new=2, n_genes=N_GENES):
    """Build a VAE with random weights that knows some batches, and one that knows more and has its weights."""
    torch.manual_seed(0)
    options = SIZES | KINDS[kind]
    reference = VAE(N_GENES, **_measured(options, n_known), n_batches=n_known).eval()
    with torch.no_grad():
        for values in (*reference.parameters(), *reference.buffers()):
            if values.is_floating_point():
                values += 0.3 * torch.rand_like(values)
    if options.get("batch_representation") != "embedding":
        options["encode_covariates"] = True
    options = _measured(options, n_known + n_new)
    larger = VAE(n_genes, **options, n_batches=n_known + n_new, n_shifted_batches=n_new).eval()
    copy_reference(reference, larger, torch.arange(n_genes))
    return reference, larger


def _measured(options, n_batches):
    """Say that proteins or peaks were measured in all batches."""
    if "proteins_measured" in options:
        return options | {"proteins_measured": [[True] * N_PROTEINS] * n_batches}
    return options | ({"peaks_measured": [True] * n_batches} if "peaks_measured" in options else {})


def cells(n_batches, n_genes=N_GENES):
    minibatch = make_minibatch(n_genes=n_genes, n_batches=n_batches, n_categories=(2,), n_continuous=1)
    generator = torch.Generator().manual_seed(5)
    proteins = torch.poisson(torch.full((minibatch.n_cells, N_PROTEINS), 4.0), generator=generator)
    accessible = sp.random_array((minibatch.n_cells, N_PEAKS), density=0.5, rng=np.random.default_rng(0), format="csr")
    return replace(minibatch, proteins=proteins, peaks=AccessiblePeaks.from_csr(sp.csr_matrix(accessible)))


def reconstruction(vae, minibatch):
    """Log-probability of all counts at a sample that depends on nothing but the cell."""
    n_state = vae.encoder.mean.out_features
    sample = torch.randn(minibatch.n_cells, n_state, generator=torch.Generator().manual_seed(1))
    log_library = None if vae.library_encoder is None else minibatch.library_size.log()
    of_genes = vae.likelihood.reconstruction(vae.decode(sample, minibatch, log_library), minibatch)
    hidden = vae.decode_hidden(sample, minibatch)
    return of_genes + sum(modality.log_prob(hidden, minibatch) for modality in vae.modalities)


@torch.no_grad()
@pytest.mark.parametrize("n_known", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_of_known_batches_are_what_they_were(kind, n_known):
    if kind == "embedding" and n_known == 1:
        pytest.skip("a single batch has no embedding that others could be compared with")
    reference, larger = extended(kind, n_known)
    minibatch = cells(n_known)
    before, after = reference.encode(minibatch), larger.encode(minibatch)
    torch.testing.assert_close(after.qz.loc, before.qz.loc)
    torch.testing.assert_close(after.qz.scale, before.qz.scale)
    if before.log_library is not None:
        torch.testing.assert_close(after.log_library.loc, before.log_library.loc)
        torch.testing.assert_close(larger.library_prior(minibatch).loc, reference.library_prior(minibatch).loc)
        torch.testing.assert_close(larger.library_prior(minibatch).scale, reference.library_prior(minibatch).scale)
    torch.testing.assert_close(reconstruction(larger, minibatch), reconstruction(reference, minibatch))
    if reference.prior is not None:
        points = torch.randn(5, 3)
        torch.testing.assert_close(larger.pz().log_prob(points), reference.pz().log_prob(points))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_new_batches_start_at_the_mean_of_known_ones(kind):
    reference, larger = extended(kind, 2)
    minibatch = cells(2)
    new = replace(minibatch, batch=torch.full_like(minibatch.batch, 3))
    # Two batches whose weights are their mean are both what a new one has to be.
    for values in _of_batches(reference):
        values.copy_(values.mean(0, keepdim=True).expand_as(values))
    copy_reference(reference, larger, torch.arange(N_GENES))
    torch.testing.assert_close(larger.encode(new).qz.loc, reference.encode(minibatch).qz.loc)
    torch.testing.assert_close(reconstruction(larger, new), reconstruction(reference, minibatch))


def _of_batches(vae):
    """Return views, batches first, of what a VAE with one continuous covariate and one of two categories holds."""
    found = []
    for name, values in vae.state_dict(keep_vars=True).items():
        if name.endswith("covariates.weight") and vae.covariates.embedding is None:
            # Of an encoder that sees proteins or peaks alone these are theirs.
            found += [] if name.startswith("encoder") and not vae.encode_covariates else [values.T[1:3]]
        elif name in OF_BATCHES or (name.endswith("log_value") and values.dim() == 2):
            found.append(values)
        elif type(vae.decoder) is LinearDecoder and name.startswith("likelihood") and values.dim() == 2:
            found.append(values.T[4:6])
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", ["nb", "zinb", "zinb by gene", "gene-batch", "vamp", "latent library", "linear"])
def test_genes_that_are_left_out_are_as_if_they_had_no_counts_and_the_others_share_what_there_is(kind):
    reference, larger = extended(kind, 2)
    smaller = extended(kind, 2, n_genes=N_GENES - 2)[1]
    minibatch = cells(2)
    counts = minibatch.counts.dense()
    counts[:, N_GENES - 2 :] = 0
    without = replace(minibatch, counts=SparseCounts.from_dense(counts))
    dropped = replace(minibatch, counts=SparseCounts.from_dense(counts[:, : N_GENES - 2]))
    torch.testing.assert_close(smaller.encode(dropped).qz.loc, reference.encode(without).qz.loc)
    state = torch.randn(minibatch.n_cells, 3)
    whole = larger.likelihood.expression(larger.decode_hidden(state, minibatch))[:, : N_GENES - 2]
    part = smaller.likelihood.expression(smaller.decode_hidden(state, minibatch))
    np.testing.assert_allclose(part, whole / whole.sum(1, keepdim=True), rtol=1e-5)


@torch.no_grad()
def test_chosen_genes_are_taken_by_their_positions():
    reference = VAE(N_GENES, n_hidden=16, n_latent=3, n_batches=2).eval()
    smaller = VAE(2, n_hidden=16, n_latent=3, n_batches=3, encode_covariates=True, n_shifted_batches=1).eval()
    copy_reference(reference, smaller, torch.tensor([5, 1]))
    torch.testing.assert_close(smaller.mean_head.linear.bias, reference.mean_head.linear.bias[[5, 1]])
    torch.testing.assert_close(
        smaller.encoder.mlp.layers[0].linear.weight, reference.encoder.mlp.layers[0].linear.weight[[5, 1]]
    )


@torch.no_grad()
def test_a_shift_multiplies_the_share_of_its_gene_in_its_batch_alone():
    larger = extended("nb", 2)[1]
    minibatch, state = cells(4), torch.randn(12, 3)
    before = larger.likelihood.expression(larger.decode_hidden(state, minibatch))
    larger.mean_head.linear.weight[4, 16 + 1] = np.log(3.0)
    after = larger.likelihood.expression(larger.decode_hidden(state, minibatch))
    factor = torch.ones(12, N_GENES)
    factor[minibatch.batch == 3, 4] = 3.0
    expected = before * factor
    torch.testing.assert_close(after, expected / expected.sum(1, keepdim=True))
