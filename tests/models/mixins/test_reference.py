"""Cells of a new batch, mapped onto a model that was trained on others."""

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from sklearn.neighbors import KNeighborsClassifier
from stores import stored

from scvae_ext import SCVAE, SemiSupervisedVAE
from scvae_ext.data import read_uns
from scvae_ext.datasets import synthetic_counts
from scvae_ext.diagnostics import compare_likelihoods, posterior_collapse, report
from scvae_ext.models.results import weights_hash

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
SMALL = {"n_hidden": 16, "n_latent": 3}


def parts(adata, *new):
    """Return cells of other batches, and of the new ones."""
    is_new = adata.obs["batch"].isin(new).to_numpy()
    return adata[~is_new].copy(), adata[is_new].copy()


def trained(adata, **options):
    SCVAE.setup_anndata(adata, batch_key="batch")
    model = SCVAE(adata, **SMALL, **options)
    model.train(max_steps=30, **QUIET)
    return model


@pytest.fixture(scope="module")
def truth():
    return synthetic_counts(2400, 150, n_types=4, n_batches=4, seed=2)


@pytest.fixture(scope="module")
def fitted(truth):
    """Reference of three batches, new cells to train on and held out, and a model of all but the latter."""
    cells, query = parts(truth, "batch_3")
    seen, held_out = query[:400].copy(), query[400:].copy()
    SCVAE.setup_anndata(cells, batch_key="batch")
    reference = SCVAE(cells, n_latent=5)
    reference.train(**QUIET)
    mapped = SCVAE.load_query_data(seen, reference)
    mapped.train(**QUIET)
    return reference, cells, mapped, seen, held_out


@pytest.fixture(scope="module")
def small():
    adata = synthetic_counts(240, 30, n_types=3, n_batches=3)
    cells, query = parts(adata, "batch_2")
    return trained(cells), cells, query


@pytest.mark.slow
def test_mapped_cells_are_described_about_as_well_as_by_a_model_of_all_cells(fitted, truth):
    reference, _, mapped, seen, held_out = fitted
    everything = truth[~truth.obs_names.isin(held_out.obs_names)].copy()
    SCVAE.setup_anndata(everything, batch_key="batch")
    of_all = SCVAE(everything, n_latent=5)
    of_all.train(**QUIET)
    before = SCVAE.load_query_data(seen, reference).get_elbo(held_out, n_samples=20)
    after, best = (model.get_elbo(held_out, n_samples=20) for model in (mapped, of_all))
    assert best - before > 10
    assert after > before + 0.9 * (best - before)


def test_expression_in_the_new_batch_follows_the_true_one(fitted):
    _, _, mapped, seen, _ = fitted
    logs = {
        batch: np.log(mapped.get_normalized_expression(transform_batch=batch, key_added=None).to_numpy().mean(0))
        for batch in ("batch_0", "batch_3")
    }
    decoded = logs["batch_3"] - logs["batch_0"]
    true = seen.varm["batch_effect"][:, 3] - seen.varm["batch_effect"][:, 0]
    rare = np.asarray(seen.X.sum(0)).ravel() < 50
    slope, _ = np.polyfit(true[~rare], decoded[~rare], 1)
    # Where new cells lie is learned as well, so that a part of the effect that all genes share goes there.
    assert np.corrcoef(true[~rare], decoded[~rare])[0, 1] > 0.93
    assert abs(slope - 1) < 0.12


def test_states_of_new_cells_lie_where_those_of_their_type_do(fitted):
    reference, cells, mapped, _, held_out = fitted
    known = KNeighborsClassifier(15).fit(reference.get_latent_representation(key_added=None), cells.obs["cell_type"])
    latent = mapped.get_latent_representation(held_out, key_added=None)
    # A model of all cells has 0.965.
    assert (known.predict(latent) == held_out.obs["cell_type"]).mean() > 0.93


def test_what_the_reference_says_of_its_cells_stays(fitted):
    reference, cells, mapped, _, _ = fitted
    for getter, options in (
        ("get_latent_representation", {}),
        ("get_normalized_expression", {"transform_batch": "batch_1"}),
    ):
        before, after = (getattr(model, getter)(cells, key_added=None, **options) for model in (reference, mapped))
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert mapped.get_elbo(cells) == pytest.approx(reference.get_elbo(cells), rel=1e-6)


def test_cells_of_the_reference_and_new_ones_are_asked_about_together(fitted):
    _, cells, mapped, seen, _ = fitted
    mapped = SCVAE.load_query_data(seen, fitted[0])
    mapped.adata = cells
    frame = mapped.get_cell_uncertainty(seen, labels_key="cell_type", key_added=None)
    assert (frame["label"] == seen.obs["cell_type"].astype(str)).mean() > 0.9
    assert mapped.get_novelty(seen, indices=np.arange(40), key_added=None).to_frame()["latent_p"].median() > 0.05


def test_the_reference_is_left_as_it_was(small):
    reference, _, query = small
    before = weights_hash(reference.module), reference.registry, dict(reference._options)
    mapped = SCVAE.load_query_data(query, reference)
    mapped.train(max_steps=30, **QUIET)
    assert (weights_hash(reference.module), reference.registry, dict(reference._options)) == before
    assert weights_hash(mapped.module) != before[0]
    assert all(value.requires_grad for value in (*reference.module.parameters(), *mapped.module.parameters()))


def test_new_cells_can_be_asked_about_before_training(small):
    reference, _, query = small
    mapped = SCVAE.load_query_data(query, reference)
    renamed = query.copy()
    renamed.obs["batch"] = "batch_0"
    # The encoder of the reference sees no batch.
    np.testing.assert_array_equal(
        mapped.get_latent_representation(key_added=None), reference.get_latent_representation(renamed, key_added=None)
    )
    assert mapped.history.empty


def test_training_starts_from_what_the_reference_makes_of_new_cells(small):
    reference, _, query = small
    mapped = SCVAE.load_query_data(query, reference)
    before = mapped.get_elbo(n_samples=50)
    # So few, and so wild, steps make it worse: the start is then the best.
    mapped.train(max_steps=60, learning_rate=5.0, **QUIET)
    held_out = mapped.validation_indices
    assert mapped.get_elbo(indices=held_out, n_samples=50) > SCVAE.load_query_data(query, reference).get_elbo(
        indices=held_out, n_samples=50
    )
    assert mapped.get_elbo(n_samples=50) > before


def test_the_same_seed_gives_the_same_weights(small):
    hashes = set()
    for _ in range(2):
        mapped = SCVAE.load_query_data(small[2], small[0])
        mapped.train(max_steps=30, seed=4, **QUIET)
        hashes.add(weights_hash(mapped.module))
    assert len(hashes) == 1


def test_a_mapped_model_is_saved_and_trained_further(small, tmp_path):
    reference, cells, query = small
    mapped = SCVAE.load_query_data(query, reference)
    mapped.train(max_steps=30, **QUIET)
    mapped.save(tmp_path / "mapped")
    loaded = SCVAE.load(tmp_path / "mapped", query)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(key_added=None), mapped.get_latent_representation(key_added=None)
    )
    loaded.train(max_steps=30, **QUIET)
    mapped.train(max_steps=30, **QUIET)
    assert weights_hash(loaded.module) == weights_hash(mapped.module)
    latent = reference.get_latent_representation(cells, key_added=None)
    np.testing.assert_allclose(loaded.get_latent_representation(cells, key_added=None), latent, rtol=1e-5, atol=1e-6)


def test_the_reference_may_be_a_saved_one(small, tmp_path):
    reference, _, query = small
    reference.save(tmp_path / "reference")
    for given in (tmp_path / "reference", str(tmp_path / "reference")):
        mapped = SCVAE.load_query_data(query, given)
        np.testing.assert_array_equal(
            mapped.get_latent_representation(key_added=None),
            SCVAE.load_query_data(query, reference).get_latent_representation(key_added=None),
        )


def test_a_mapped_model_is_a_reference_for_further_batches():
    adata = synthetic_counts(320, 30, n_types=3, n_batches=4)
    cells, queries = parts(adata, "batch_2", "batch_3")
    first, second = parts(queries, "batch_3")
    reference = trained(cells)
    once = SCVAE.load_query_data(first, reference)
    once.train(max_steps=30, **QUIET)
    twice = SCVAE.load_query_data(second, once)
    twice.train(max_steps=30, **QUIET)
    assert twice.registry.batch_categories == ("batch_0", "batch_1", "batch_2", "batch_3")
    for known, model in ((cells, reference), (first, once)):
        assert twice.get_elbo(known) == pytest.approx(model.get_elbo(known), rel=1e-6)
    assert twice.get_elbo(n_samples=20) > SCVAE.load_query_data(second, once).get_elbo(n_samples=20)


def test_several_new_batches_and_known_ones_are_mapped_at_once():
    adata = synthetic_counts(400, 30, n_types=3, n_batches=4)
    reference = trained(parts(adata, "batch_2", "batch_3")[0])
    mixed = adata[adata.obs["batch"] != "batch_0"].copy()
    mapped = SCVAE.load_query_data(mixed, reference)
    before = {
        batch: mapped.get_elbo(indices=(mixed.obs["batch"] == batch).to_numpy()) for batch in ("batch_1", "batch_3")
    }
    mapped.train(max_steps=200, **QUIET)
    after = {batch: mapped.get_elbo(indices=(mixed.obs["batch"] == batch).to_numpy()) for batch in before}
    assert after["batch_1"] == pytest.approx(before["batch_1"], rel=1e-6)
    assert after["batch_3"] > before["batch_3"]


def test_a_reference_of_one_batch_can_be_mapped_onto():
    adata = synthetic_counts(240, 30, n_types=3, n_batches=2)
    cells, query = parts(adata, "batch_1")
    for representation in ("one-hot", "embedding"):
        reference = trained(cells, batch_representation=representation)
        mapped = SCVAE.load_query_data(query, reference)
        before = mapped.get_elbo(n_samples=20)
        mapped.train(max_steps=200, **QUIET)
        assert mapped.get_elbo(n_samples=20) > before + 1
        assert mapped.get_elbo(cells) == pytest.approx(reference.get_elbo(cells), rel=1e-6)


@pytest.mark.parametrize("kind", ["backed", "zarr", "lazy zarr"])
def test_new_cells_may_lie_on_disk(small, tmp_path, kind):
    reference, _, query = small
    mapped = SCVAE.load_query_data(query, reference)
    mapped.train(max_steps=20, **QUIET)
    with stored(query, kind, tmp_path) as other:
        same = SCVAE.load_query_data(other, reference)
        same.train(max_steps=20, **QUIET)
        assert same.get_elbo() == pytest.approx(mapped.get_elbo(), rel=1e-3)


def test_missing_genes_are_left_out_of_the_model(small):
    reference, _, query = small
    few = query[:, [2, 5, *range(8, 30)]].copy()
    with pytest.raises(ValueError, match="lacks 6 of the 30 genes"):
        SCVAE.load_query_data(few, reference)
    with pytest.warns(UserWarning, match="6 of the 30 genes of the reference are missing"):
        mapped = SCVAE.load_query_data(few, reference, drop_missing_genes=True)
    filled = query.copy()
    counts = filled.X.toarray()
    counts[:, ~filled.var_names.isin(few.var_names)] = 0
    filled.X = counts
    filled.obs["batch"] = "batch_0"
    np.testing.assert_allclose(
        mapped.get_latent_representation(key_added=None),
        reference.get_latent_representation(filled, key_added=None),
        atol=1e-5,
    )
    before = mapped.get_elbo(n_samples=20)
    mapped.train(max_steps=100, **QUIET)
    assert mapped.get_elbo(n_samples=20) > before
    expression = mapped.get_normalized_expression(key_added=None)
    assert list(expression) == list(few.var_names)
    np.testing.assert_allclose(expression.sum(1), 1, rtol=1e-4)


def test_genes_in_another_order_and_further_ones_are_no_hindrance(small):
    reference, _, query = small
    other = query[:, ::-1].copy()
    np.testing.assert_array_equal(
        SCVAE.load_query_data(other, reference).get_latent_representation(key_added=None),
        SCVAE.load_query_data(query, reference).get_latent_representation(key_added=None),
    )


def test_the_anndata_is_not_changed_until_a_getter_writes(small):
    reference, _, query = small
    query = query.copy()
    before = json.dumps(read_uns(query))
    mapped = SCVAE.load_query_data(query, reference)
    mapped.train(max_steps=10, **QUIET)
    assert json.dumps(read_uns(query)) == before
    mapped.get_latent_representation()
    assert read_uns(query)["results"]['obsm["X_scvae"]']["options"]["n_shifted_batches"] == 1


def test_factors_of_a_reference_are_kept(small):
    _, cells, query = small
    reference = trained(cells.copy(), residual_rank=2)
    mapped = SCVAE.load_query_data(query, reference)
    assert mapped.module.residual_rank == reference.module.residual_rank
    mapped.train(max_steps=20, **QUIET)
    assert mapped.module.residual_rank == reference.module.residual_rank
    assert mapped.get_elbo(cells) == pytest.approx(reference.get_elbo(cells), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "zinb", "dispersion": "gene-cell"},
        {"dispersion": "gene-batch", "n_layers": 2, "deeply_inject_covariates": False},
        {"use_observed_lib_size": False},
        {"prior": "vamp", "n_prior_components": 5},
        {"decoder": "linear"},
        {"gene_likelihood": "normal"},
        {"batch_representation": "embedding"},
        {"latent_distribution": "ln", "encode_covariates": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_all_kinds_of_models_are_mapped_onto(small, options, tmp_path):
    _, cells, query = small
    reference = trained(cells.copy(), **options)
    mapped = SCVAE.load_query_data(query, reference)
    before = mapped.get_elbo(n_samples=20)
    mapped.train(max_steps=200, **QUIET)
    assert mapped.get_elbo(n_samples=20) > before
    assert mapped.get_elbo(cells) == pytest.approx(reference.get_elbo(cells), rel=1e-5)
    mapped.save(tmp_path / "mapped")
    assert SCVAE.load(tmp_path / "mapped", query).get_elbo() == pytest.approx(mapped.get_elbo(), rel=1e-6)


def test_the_library_size_of_a_new_batch_has_the_prior_of_its_cells(small):
    _, cells, query = small
    reference = trained(cells.copy(), use_observed_lib_size=False)
    module = SCVAE.load_query_data(query, reference).module
    log_size = np.log(np.asarray(query.X.sum(1)).ravel())
    assert module.library_log_means[2] == pytest.approx(log_size.mean(), rel=1e-5)
    assert module.library_log_variances[2] == pytest.approx(log_size.var(), rel=1e-4)
    torch.testing.assert_close(module.library_log_means[:2], reference.module.library_log_means)


def test_other_bounds_are_trained_as_well(small):
    reference, _, query = small
    for options in ({"objective": "iwae", "n_samples": 3}, {"n_samples": 2}):
        mapped = SCVAE.load_query_data(query, reference)
        before = mapped.get_elbo(n_samples=20)
        mapped.train(max_steps=60, **options, **QUIET)
        assert mapped.get_elbo(n_samples=20) > before


def test_diagnostics_of_mapped_cells_work_and_those_that_would_train_again_say_why_not(small, tmp_path):
    reference, _, query = small
    mapped = SCVAE.load_query_data(query, reference)
    with pytest.raises(RuntimeError, match=r"mapped onto its reference and not trained since"):
        report(mapped, tmp_path / "early.html")
    mapped.train(max_steps=20, **QUIET)
    assert len(posterior_collapse(mapped).to_frame()) == 3
    with pytest.raises(ValueError, match=r"second model that is trained like the first.*intervals"):
        mapped.calibrate_intervals()
    report(mapped, tmp_path / "report.html", sections=["compare_likelihoods"])
    assert "most of this one was learned from cells of its reference" in (tmp_path / "report.html").read_text()


def test_the_reference_must_be_trained(small):
    _, cells, query = small
    with pytest.raises(RuntimeError, match=r"has not been trained: call model.train\(\) first"):
        SCVAE.load_query_data(query, SCVAE(cells, **SMALL))


@pytest.mark.usefixtures("unchecked")
def test_the_reference_must_be_of_the_same_class(small, tmp_path):
    reference, _, query = small
    with pytest.raises(ValueError, match=r"is a SCVAE, not a SemiSupervisedVAE: call SCVAE.load_query_data"):
        SemiSupervisedVAE.load_query_data(query, reference)
    reference.save(tmp_path / "reference")
    with pytest.raises(ValueError, match=r"holds a SCVAE, not a SemiSupervisedVAE"):
        SemiSupervisedVAE.load_query_data(query, tmp_path / "reference")
    with pytest.raises(ValueError, match=r"reference_model is a dict, not a SCVAE"):
        SCVAE.load_query_data(query, {})


@pytest.mark.usefixtures("unchecked")
def test_wrong_values_are_refused(small):
    reference, cells, query = small
    with pytest.raises(ValueError, match=r"drop_missing_genes='yes' must be True or False"):
        SCVAE.load_query_data(query, reference, drop_missing_genes="yes")
    mapped = SCVAE.load_query_data(query, reference)
    for options in ({"weight_decay": 0.1}, {"plan_kwargs": {"weight_decay": 0.1}}):
        with pytest.raises(ValueError, match=r"weight_decay=0.1 would shrink what the reference has learned"):
            mapped.train(**options, **QUIET)
    mapped.train(max_steps=5, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    with pytest.raises(ValueError, match=r"batch_penalty=1.0 needs at least two batches, and all cells"):
        mapped.train(batch_penalty=1.0, **QUIET)
    sized = cells.copy()
    sized.obs["size"] = 1.0 + np.arange(len(sized)) % 3
    SCVAE.setup_anndata(sized, batch_key="batch", size_factor_key="size")
    with_size_factors = SCVAE(sized, **SMALL)
    with_size_factors.train(max_steps=5, **QUIET)
    with pytest.raises(ValueError, match=r"size factors \(size_factor_key='size'\).*train it without them"):
        SCVAE.load_query_data(query, with_size_factors)
    linear = trained(cells.copy(), decoder="linear", batch_representation="embedding")
    with pytest.raises(ValueError, match=r'"embedding" and decoder="linear".*one-hot'):
        SCVAE.load_query_data(query, linear)


def test_fractions_are_refused_by_a_likelihood_of_counts(small):
    reference, _, query = small
    query = query.copy()
    query.X = query.X * 0.5
    with pytest.raises(ValueError, match="whole number"):
        SCVAE.load_query_data(query, reference)


@pytest.fixture(scope="module")
def with_novel_cells():
    """A reference without one of four types, which differ by markers, and new cells of all; batches have no effect."""
    rng = np.random.default_rng(0)
    shares = (0.05 + rng.gamma(0.5, 1, 120)) * np.exp(0.3 * rng.normal(size=(4, 120)))
    for kind in range(4):
        shares[:, kind * 10 : (kind + 1) * 10] = 0.2 * shares.mean()
        shares[kind, kind * 10 : (kind + 1) * 10] = 8 * shares.mean()
    shares /= shares.sum(1, keepdims=True)

    def draw(batch, types):
        mean = 1500 * shares[types] * rng.gamma(10, 0.1, (len(types), 120))
        obs = pd.DataFrame({"batch": batch, "type": types}, index=[f"{batch}_{i}" for i in range(len(types))])
        return AnnData(sp.csr_matrix(rng.poisson(mean).astype(np.float32)), obs=obs)

    cells = ad.concat([draw(batch, rng.integers(0, 3, 500)) for batch in ("a", "b")])
    query = draw("new", np.where(rng.random(500) < 0.25, 3, rng.integers(0, 3, 500)))
    SCVAE.setup_anndata(cells, batch_key="batch")
    reference = SCVAE(cells, n_latent=5)
    reference.train(**QUIET)
    return reference, query, (query.obs["type"] == 3).to_numpy(), shares


def _log_share_of_markers(model, query, shares):
    """Log ratio of decoded and true expression of the novel type's markers, in cells of a known type."""
    of_known = (query.obs["type"] == 0).to_numpy()
    decoded = model.get_normalized_expression(query, key_added=None).to_numpy()[of_known].mean(0)
    return np.log(decoded[30:40] / shares[0, 30:40]).mean()


def test_cells_of_a_type_that_the_reference_lacks_do_not_pass_for_an_effect_of_the_batch(with_novel_cells):
    reference, query, is_novel, shares = with_novel_cells
    mapped = SCVAE.load_query_data(query, reference)
    with pytest.warns(UserWarning, match=r"\d+ of 500 new cells \(2\d%\) are unlike all that the reference describes"):
        mapped.train(**QUIET)
    left_out = query.obs_names.isin(mapped.novel_cells)
    assert left_out[is_novel].mean() > 0.95
    assert left_out[~is_novel].mean() < 0.02
    assert abs(_log_share_of_markers(mapped, query, shares)) < 0.2
    # With all cells they do, which is what this is for.
    all_cells = SCVAE.load_query_data(query, reference, exclude_novel=False)
    all_cells.train(**QUIET)
    assert len(all_cells.novel_cells) == 0
    assert _log_share_of_markers(all_cells, query, shares) > 1
    mapped.adata = reference.adata
    frame = mapped.get_novelty(query, n_replicates=20, key_added=None).to_frame()
    assert (frame["elbo_p"] < 0.05)[is_novel].mean() > 0.9
    assert (frame["elbo_p"] < 0.05)[~is_novel].mean() < 0.1


def test_novel_cells_are_left_out_again_by_a_model_that_was_saved(with_novel_cells, tmp_path):
    reference, query, is_novel, _ = with_novel_cells
    mapped = SCVAE.load_query_data(query, reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapped.train(max_steps=100, **QUIET)
        mapped.save(tmp_path / "mapped")
        loaded = SCVAE.load(tmp_path / "mapped", query)
        assert loaded.novel_cells.equals(mapped.novel_cells)
        loaded.train(max_steps=20, **QUIET)
    assert query.obs_names.isin(loaded.novel_cells)[is_novel].mean() > 0.95


def test_training_goes_on_from_the_shifts_that_were_trained(small):
    reference, _, query = small
    mapped = SCVAE.load_query_data(query, reference, exclude_novel=False)
    mapped.train(max_steps=200, train_size=1.0, **QUIET)
    before = {name: value.clone() for name, value in mapped.module.state_dict().items()}
    # Steps so small that nothing can come back that a new start would have taken away.
    mapped.train(max_steps=1, learning_rate=1e-9, **QUIET)
    for name, value in mapped.module.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)


def test_batches_without_cells_to_train_on_keep_what_was_learned_of_them():
    adata = synthetic_counts(400, 30, n_types=3, n_batches=4)
    cells, query = parts(adata, "batch_2", "batch_3")
    mapped = SCVAE.load_query_data(query, trained(cells))
    mapped.train(max_steps=100, **QUIET)
    first, second = parts(query, "batch_3")
    before = mapped.get_elbo(second)
    mapped.adata = first
    mapped.train(max_steps=50, **QUIET)
    assert mapped.get_elbo(second) == pytest.approx(before, rel=1e-6)
    mapped.adata = cells
    with pytest.raises(ValueError, match=r"None of the cells to train on is of a new batch.*'batch_2', 'batch_3'"):
        mapped.train(max_steps=5, **QUIET)


def test_a_batch_that_comes_later_starts_later():
    adata = synthetic_counts(400, 30, n_types=3, n_batches=4)
    cells, query = parts(adata, "batch_2", "batch_3")
    first, second = parts(query, "batch_3")
    reference = trained(cells)
    mapped = SCVAE.load_query_data(query, reference)
    mapped.adata = first
    mapped.train(max_steps=100, **QUIET)
    with pytest.raises(RuntimeError, match="not trained on all of its new batches"):
        SCVAE.load_query_data(synthetic_counts(40, 30).copy(), mapped)
    untrained = mapped.get_elbo(second)
    mapped.adata = second
    # One step from there is nearly the start, which is most of the way.
    mapped.train(max_steps=1, learning_rate=1e-9, **QUIET)
    assert mapped.get_elbo(second) > untrained + 1


def test_two_cells_are_enough(small):
    reference, _, query = small
    mapped = SCVAE.load_query_data(query[:2].copy(), reference)
    mapped.train(max_steps=50, **QUIET)
    mapped.train(max_steps=5, batch_size=1, **QUIET)
    assert np.isfinite(mapped.get_elbo(query))


@pytest.fixture(scope="module")
def labelled():
    adata = synthetic_counts(1500, 100, n_types=4, n_batches=3, library_size=200, seed=3)
    cells, query = parts(adata, "batch_2")
    del query.obs["cell_type"]
    SemiSupervisedVAE.setup_anndata(cells, labels_key="cell_type", batch_key="batch", unlabeled_category="Unknown")
    reference = SemiSupervisedVAE(cells, n_latent=5)
    reference.train(max_steps=600, **QUIET)
    return adata, reference, cells, query


def test_labels_of_new_cells_are_told(labelled):
    adata, reference, cells, query = labelled
    mapped = SemiSupervisedVAE.load_query_data(query, reference)
    mapped.train(**QUIET)
    truth = adata.obs["cell_type"][query.obs_names].astype(str)
    assert (mapped.predict(key_added=None).astype(str) == truth).mean() > 0.9
    assert mapped.label_calibration == reference.label_calibration
    before, after = (model.predict(cells, soft=True, key_added=None) for model in (reference, mapped))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_labels_that_new_cells_have_are_used(labelled):
    adata, reference, _, query = labelled
    query = query.copy()
    query.obs["cell_type"] = adata.obs["cell_type"][query.obs_names].astype(str)
    mapped = SemiSupervisedVAE.load_query_data(query, reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped.train(max_steps=100, **QUIET)
    assert (mapped.predict(key_added=None).astype(str) == query.obs["cell_type"]).mean() > 0.9
    query.obs["cell_type"] = "another"
    with pytest.raises(ValueError, match=r"'another'.*drop or rename it"):
        SemiSupervisedVAE.load_query_data(query, reference)


@pytest.mark.usefixtures("unchecked")
def test_compare_likelihoods_knows_nothing_of_shifted_batches(small):
    _, cells, _ = small
    with pytest.raises(TypeError, match="n_shifted_batches"):
        compare_likelihoods(cells, model_options={"n_shifted_batches": 1})


def test_a_first_training_of_a_mapped_model_that_fails_decides_no_split(small):
    reference, _, query = small
    mapped = SCVAE.load_query_data(query, reference)

    class Failing(Callback):
        def on_train_batch_end(self, *args):
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        mapped.train(max_steps=5, callbacks=Failing(), **QUIET)
    assert mapped.train_indices is None
    mapped.train(max_steps=5, train_size=0.5, **QUIET)
    other = SCVAE.load_query_data(query, reference)
    other.train(max_steps=5, train_size=0.5, **QUIET)
    np.testing.assert_array_equal(mapped.train_indices, other.train_indices)
    assert mapped.get_elbo(n_samples=20) == pytest.approx(other.get_elbo(n_samples=20), abs=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("cell_type", ["type_0", "type_2"])
def test_cells_of_one_type_by_themselves_stay_with_their_type(cell_type):
    cells, query = parts(synthetic_counts(1200, 100, n_types=4, n_batches=3, library_size=400, seed=1), "batch_2")
    SCVAE.setup_anndata(cells, batch_key="batch")
    reference = SCVAE(cells, n_latent=5, n_hidden=32)
    reference.train(max_steps=400, **QUIET)
    nearest = KNeighborsClassifier(15).fit(
        reference.get_latent_representation(key_added=None), cells.obs["cell_type"].astype(str)
    )
    query = query[query.obs["cell_type"] == cell_type].copy()
    mapped = SCVAE.load_query_data(query, reference)
    mapped.train(max_steps=400, **QUIET)
    # With a pull to the origin it was a tenth and a quarter of them.
    assert np.mean(nearest.predict(mapped.get_latent_representation(key_added=None)) == cell_type) > 0.8
