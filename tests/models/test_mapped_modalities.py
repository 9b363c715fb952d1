"""Cells of a new batch mapped onto models of genes and proteins, and of genes and chromatin."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import roc_auc_score

from scvae_ext import CiteVAE, MultiomeVAE
from scvae_ext.datasets import synthetic_counts

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
# More steps and units change little of what is asked here.
ENOUGH = {"max_steps": 500, **QUIET}
SIZE = {"n_hidden": 32, "n_latent": 10}
SETUP = {
    CiteVAE: {"protein_expression_obsm_key": "protein"},
    MultiomeVAE: {"accessibility_obsm_key": "accessibility", "peak_names_uns_key": "peaks"},
}
BOTH = pytest.mark.parametrize("kind", [CiteVAE, MultiomeVAE])


@pytest.fixture(scope="module")
def truth():
    return synthetic_counts(2100, 100, n_types=4, n_batches=3, n_proteins=12, n_peaks=150, library_size=600, seed=2)


def trained(kind, adata):
    kind.setup_anndata(adata, batch_key="batch", **SETUP[kind])
    model = kind(adata, **SIZE)
    model.train(**ENOUGH)
    return model


@pytest.fixture(scope="module")
def fitted(truth):
    """References of two batches, new cells to train on, and cells held out."""
    is_new = (truth.obs["batch"] == "batch_2").to_numpy()
    cells, query = truth[~is_new].copy(), truth[is_new].copy()
    references = {kind: trained(kind, cells.copy()) for kind in SETUP}
    return references, query[:400].copy(), query[400:].copy()


@pytest.fixture(scope="module")
def mapped(fitted):
    references, seen, _ = fitted
    models = {}
    for kind, reference in references.items():
        models[kind] = kind.load_query_data(seen, reference)
        models[kind].train(**ENOUGH)
    return models


@pytest.mark.slow
@BOTH
def test_mapped_cells_are_described_about_as_well_as_by_a_model_of_all_cells(truth, fitted, mapped, kind):
    references, seen, held_out = fitted
    of_all = trained(kind, truth[~truth.obs_names.isin(held_out.obs_names)].copy())
    before = kind.load_query_data(seen, references[kind]).get_elbo(held_out, n_samples=20)
    after, best = (model.get_elbo(held_out, n_samples=20) for model in (mapped[kind], of_all))
    assert best - before > 7
    assert after > before + 0.9 * (best - before)


@BOTH
def test_what_the_reference_says_of_its_cells_stays(fitted, mapped, kind):
    reference = fitted[0][kind]
    cells = reference.adata
    for model in (kind.load_query_data(fitted[1], reference), mapped[kind]):
        assert model.get_elbo(cells) == pytest.approx(reference.get_elbo(cells), rel=1e-6)
        latent = reference.get_latent_representation(cells, key_added=None)
        np.testing.assert_allclose(model.get_latent_representation(cells, key_added=None), latent, atol=1e-5)
        if kind is CiteVAE:
            before, after = (each.get_protein_expression(cells, key_added=None) for each in (reference, model))
        else:
            before, after = (each.get_accessibility(cells, key_added=None) for each in (reference, model))
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-6)


def test_staining_of_the_new_batch_is_learned(fitted, mapped):
    references, seen, held_out = fitted
    observed = held_out.obsm["protein"].to_numpy().mean(0)
    errors = {}
    for name, model in (("before", CiteVAE.load_query_data(seen, references[CiteVAE])), ("after", mapped[CiteVAE])):
        drawn = model.posterior_predictive_proteins(held_out, n_samples=20, seed=1).mean(0)
        errors[name] = np.abs(np.log(drawn.mean(0) / observed)).mean()
    assert errors["after"] < 0.15
    assert errors["before"] > 2 * errors["after"]


def test_openness_of_peaks_in_the_new_batch_is_learned(fitted, mapped):
    references, seen, held_out = fitted
    depth = held_out.obs["accessibility_depth"].to_numpy()[:, None]
    true = -np.expm1(-held_out.obsm["accessibility_rate"] * depth).mean(0)
    errors = {}
    fresh = MultiomeVAE.load_query_data(seen, references[MultiomeVAE])
    for name, model in (("before", fresh), ("after", mapped[MultiomeVAE])):
        errors[name] = np.abs(model.get_accessibility(held_out, key_added=None).to_numpy().mean(0) - true).mean()
    # That of a model of all cells is 0.0145.
    assert errors["after"] < 0.02
    assert errors["before"] > 1.5 * errors["after"]


@BOTH
def test_cells_without_the_second_kind_of_values_are_mapped_by_their_genes(fitted, kind):
    references, seen, held_out = fitted
    plain, others = seen.copy(), held_out.copy()
    key = SETUP[kind][next(iter(SETUP[kind]))]
    for adata in (plain, others):
        del adata.obsm[key]
    with pytest.warns(UserWarning, match=r"'batch_2'"):
        model = kind.load_query_data(plain, references[kind])
    before = model.get_elbo(others, n_samples=20)
    model.train(**ENOUGH)
    assert model.get_elbo(others, n_samples=20) > before + 6
    if kind is CiteVAE:
        probability = model.get_protein_foreground_probability(others, given="state", key_added=None)
        assert (
            roc_auc_score(held_out.obsm["protein_foreground"].to_numpy().ravel(), probability.to_numpy().ravel()) > 0.88
        )
    else:
        decoded = model.get_accessibility(others, key_added=None).to_numpy()
        true = -np.expm1(-held_out.obsm["accessibility_rate"])
        assert np.corrcoef(decoded.ravel(), true.ravel())[0, 1] > 0.75


def test_a_smaller_panel_is_mapped_with_what_it_has(fitted):
    references, seen, _ = fitted
    reference = references[CiteVAE]
    few = seen.copy()
    few.obsm["protein"] = few.obsm["protein"].drop(columns=["protein_3", "protein_5"])
    with pytest.warns(UserWarning, match=r"2 of 12 proteins.*'batch_2'.*'protein_3', 'protein_5'"):
        model = CiteVAE.load_query_data(few, reference)
    assert model.protein_names == reference.protein_names
    model.train(max_steps=200, **QUIET)
    expected = model.get_protein_expression(key_added=None)
    assert expected.shape == (400, 12)
    assert np.isfinite(expected.to_numpy()).all()
    log_background = model.module.proteins.likelihood.log_background.detach().numpy()
    np.testing.assert_allclose(log_background[2, [3, 5]], log_background[:2, [3, 5]].mean(0), rtol=1e-6)


def test_a_mapped_model_survives_saving(fitted, mapped, tmp_path):
    seen = fitted[1]
    for kind, model in mapped.items():
        model.save(tmp_path / kind.__name__)
        loaded = kind.load(tmp_path / kind.__name__, seen)
        assert loaded.get_elbo() == pytest.approx(model.get_elbo(), rel=1e-6)
        loaded.train(max_steps=10, **QUIET)
        reference = fitted[0][kind]
        assert loaded.get_elbo(reference.adata) == pytest.approx(reference.get_elbo(), rel=1e-6)


def test_proteins_and_peaks_that_differ_are_found_among_mapped_cells(fitted, mapped):
    seen = fitted[1]
    for kind, name in ((CiteVAE, "differential_protein_expression"), (MultiomeVAE, "differential_accessibility")):
        table = getattr(mapped[kind], name)(groupby="cell_type", group1="type_0", key_added=None)
        assert isinstance(table, pd.DataFrame)
        assert len(table) == (12 if kind is CiteVAE else 150)
    assert "rank_genes_groups" not in seen.uns


def test_values_that_are_no_counts_are_refused(fitted):
    references, seen, _ = fitted
    wrong = seen.copy()
    wrong.obsm["protein"] = wrong.obsm["protein"] + 0.5
    with pytest.raises(ValueError, match="must hold raw counts"):
        CiteVAE.load_query_data(wrong, references[CiteVAE])
    wrong = seen.copy()
    values = wrong.obsm["protein"].copy()
    values.iloc[0, 0] = np.nan
    wrong.obsm["protein"] = values
    with pytest.raises(ValueError, match=r"no value of 'protein_0' for 1 of 400 cells of batch 'batch_2'"):
        CiteVAE.load_query_data(wrong, references[CiteVAE])
    wrong = seen.copy()
    wrong.obsm["accessibility"] = sp.csr_matrix(wrong.obsm["accessibility"][:, :100])
    wrong.uns["peaks"] = wrong.uns["peaks"][:100]
    with pytest.raises(ValueError, match="lacks 50 of the 150 peaks"):
        MultiomeVAE.load_query_data(wrong, references[MultiomeVAE])
