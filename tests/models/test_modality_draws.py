"""Draws of proteins and peaks against getters, and the depth at which peaks are expected."""

import numpy as np
import pytest
import torch

from scvae_ext import MultiomeVAE
from scvae_ext.datasets import synthetic_counts
from scvae_ext.models.cells import evaluating
from scvae_ext.models.modality_draws import _matching_log_depth, peak_draws, protein_draws


@pytest.fixture(scope="module")
def multiome():
    adata = synthetic_counts(120, 30, n_batches=2, n_peaks=25)
    MultiomeVAE.setup_anndata(
        adata, batch_key="batch", accessibility_obsm_key="accessibility", peak_names_uns_key="peaks"
    )
    model = MultiomeVAE(adata, n_hidden=16, n_latent=3)
    model.train(max_steps=50, enable_progress_bar=False)
    return model


def drawn(draw, model, batches=(), batch_size=None, n_samples=2, **options):
    _, cells = model._cells(None, None, batch_size, False)
    with evaluating(model.module):
        return list(draw(model.module, cells, list(batches), n_samples, 0, **options))


@pytest.mark.parametrize("per_background", [True, False])
@pytest.mark.parametrize("batch_size", [None, 50])
def test_proteins_have_the_expected_counts_of_the_getter(cite, per_background, batch_size):
    chunks = drawn(protein_draws, cite, batch_size=batch_size, per_background=per_background)
    mean = torch.cat([(chunk.depth * chunk.fitted).mean(0) for chunk in chunks]).numpy()
    options = {"include_background": True, "n_samples": 2, "key_added": None}
    measured = torch.cat([chunk.measured for chunk in chunks]).numpy()
    np.testing.assert_array_equal(measured, cite.adata.obsm["protein"].notna())
    # The protein that was not measured in a batch is decoded there as the other one has it.
    expected = cite.get_protein_expression(**options).to_numpy()
    np.testing.assert_allclose(mean[measured], expected[measured], rtol=1e-5)
    if not per_background:
        expression = torch.cat([chunk.expression.mean(0) for chunk in chunks]).numpy()
        np.testing.assert_allclose(expression, expected, rtol=1e-5)
    counts = np.concatenate([chunk.counts.dense().numpy() for chunk in chunks])
    np.testing.assert_array_equal(counts, cite.adata.obsm["protein"].fillna(0).to_numpy())


def test_background_does_not_differ_between_batches_once_divided_out(cite):
    """Expression over background in a given batch: what the mixture says of the states there."""
    (of_both,) = drawn(protein_draws, cite, batches=[0, 1], per_background=True)
    one, two = (drawn(protein_draws, cite, batches=[batch], per_background=True)[0] for batch in (0, 1))
    measured_in_both = [0, 2, 3, 4]
    torch.testing.assert_close(
        of_both.expression[..., measured_in_both], (one.expression + two.expression)[..., measured_in_both] / 2
    )
    torch.testing.assert_close(of_both.expression[..., 1], one.expression[..., 1])
    assert (of_both.expression >= 1).all()


def test_peaks_have_the_probabilities_of_the_getter_and_as_many_as_were_found(multiome):
    (chunk,) = drawn(peak_draws, multiome)
    expected = multiome.get_accessibility(n_samples=2, key_added=None).to_numpy()
    np.testing.assert_allclose(chunk.expression.mean(0).numpy(), expected, rtol=1e-5)
    found = np.asarray(multiome.adata.obsm["accessibility"].sum(1)).ravel()
    np.testing.assert_allclose(chunk.fitted.sum(-1).numpy(), np.tile(found, (2, 1)), rtol=1e-4)
    np.testing.assert_array_equal(chunk.counts.dense().numpy(), multiome.adata.obsm["accessibility"].toarray())


def test_depth_is_found_for_every_number_of_peaks():
    generator = torch.Generator().manual_seed(0)
    log_rate = (2 * torch.randn(1, 49, 50, generator=generator) - 2).expand(2, -1, -1)
    found = torch.arange(49.0)
    depth = _matching_log_depth(log_rate, found)
    expected = -torch.expm1(-(log_rate + depth.unsqueeze(-1)).exp())
    inside = found.clamp_min(0.5).expand(2, -1)
    torch.testing.assert_close(expected.sum(-1), inside, rtol=1e-3, atol=1e-3)


def test_dispersion_of_proteins_is_that_of_the_mixture(cite):
    (chunk,) = drawn(protein_draws, cite, n_samples=1, per_background=False)
    minibatch = cite._own_source().minibatch(np.arange(120))
    with evaluating(cite.module):
        hidden = cite.module.decode_hidden(cite.module.encode(minibatch).qz.loc, minibatch)
        px = cite.module.proteins.decode(hidden, minibatch.batch)
    # Moments of the two negative binomials about zero.
    share = torch.sigmoid(px.first_logits).double()
    first, second = (
        (part.mean.double(), part.mean.double() * (1 + part.mean / part.inverse_dispersion + part.mean))
        for part in (px.first, px.second)
    )
    mean, square = (share * one + (1 - share) * two for one, two in zip(first, second, strict=True))
    torch.testing.assert_close(
        mean + mean.square() / chunk.inverse_dispersion, square - mean.square(), rtol=1e-3, atol=1e-3
    )


def test_units_of_background_are_those_of_the_batch_that_is_decoded(cite):
    (chunk,) = drawn(protein_draws, cite, batches=[0], n_samples=1, per_background=True)
    minibatch = cite._own_source().minibatch(np.arange(120))
    batch = torch.zeros_like(minibatch.batch)
    with evaluating(cite.module):
        hidden = cite.module.decode_hidden(cite.module.encode(minibatch).qz.loc, minibatch, batch)
        px = cite.module.proteins.decode(hidden, batch)
    torch.testing.assert_close(chunk.expression[0], px.mean / px.first.mean, rtol=1e-4, atol=1e-5)
