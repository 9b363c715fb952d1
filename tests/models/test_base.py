import json
import os
import pickle
import random
import signal

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer

from scvae_ext import SCVAE, Autoencoder, CiteVAE, MultiomeVAE
from scvae_ext.datasets import synthetic_counts
from scvae_ext.models.results import weights_hash
from scvae_ext.train import TrainingDivergedError
from scvae_ext.train.callbacks import BestWeights, GentleInterrupt

SMALL = {"n_hidden": 16, "n_latent": 3}


def _train(model, **options):
    model.train(**({"max_steps": 20, "enable_progress_bar": False} | options))
    return model


def _weights(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def _same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", [SCVAE, Autoencoder])
def test_same_seed_gives_the_same_weights_bit_for_bit(adata, kind):
    one = _weights(_train(kind(adata, **SMALL)))
    torch.randn(3)
    assert _same(one, _weights(_train(kind(adata, **SMALL))))
    assert not _same(one, _weights(_train(kind(adata, **SMALL, seed=1))))
    assert not _same(one, _weights(_train(kind(adata, **SMALL), seed=1)))


@pytest.mark.usefixtures("unchecked")
def test_no_generator_of_the_user_is_touched(adata):
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    model = _train(SCVAE(adata, **SMALL))
    model.get_latent_representation(give_mean=False)
    model.posterior_predictive_sample()
    model.get_marginal_ll(n_mc_samples=2)
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_nothing_is_written_to_the_working_directory(adata, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _train(SCVAE(adata, **SMALL))
    assert list(tmp_path.iterdir()) == []


def test_an_anndata_that_was_not_set_up_is_refused():
    with pytest.raises(ValueError, match="setup_anndata"):
        SCVAE(synthetic_counts(10, 5))


@pytest.mark.parametrize("getter", ["get_latent_representation", "get_elbo", "posterior_predictive_sample"])
def test_getters_need_a_trained_model(adata, getter):
    with pytest.raises(RuntimeError, match=r"not been trained: call model\.train\(\)"):
        getattr(SCVAE(adata, **SMALL), getter)()


def test_the_split_is_a_partition_and_does_not_change(adata):
    model = _train(SCVAE(adata, **SMALL), train_size=0.5, validation_size=0.25)
    parts = [model.train_indices, model.validation_indices, model.test_indices]
    assert [len(part) for part in parts] == [60, 30, 30]
    assert sorted(np.concatenate(parts)) == list(range(120))
    _train(model, train_size=0.9)
    assert [part.tolist() for part in parts] == [
        model.train_indices.tolist(),
        model.validation_indices.tolist(),
        model.test_indices.tolist(),
    ]


def test_a_split_in_order(adata):
    model = _train(SCVAE(adata, **SMALL), train_size=0.5, shuffle_set_split=False)
    assert model.train_indices.tolist() == list(range(60))


def test_a_call_that_fails_decides_no_split(adata):
    model = SCVAE(adata, **SMALL)
    with pytest.raises(ValueError, match="learning_rate"):
        _train(model, train_size=0.5, learning_rate=-1.0)
    assert model.train_indices is None


def test_training_on_every_cell(adata):
    model = _train(SCVAE(adata, **SMALL), train_size=1.0)
    assert len(model.train_indices) == 120
    assert model.is_trained
    assert model.history["step"].iloc[-1] == 20


@pytest.mark.parametrize("batch_size", [7, 107, 1000])
def test_minibatches_that_do_not_divide_the_cells(adata, batch_size):
    # 108 training cells: with 107 a minibatch of one would be left over.
    model = _train(SCVAE(adata, **SMALL), batch_size=batch_size)
    assert np.isfinite(model.get_latent_representation()).all()


def test_epochs_are_passes_over_the_training_cells(adata):
    model = _train(SCVAE(adata, **SMALL), max_steps=None, max_epochs=3, batch_size=40, early_stopping=False)
    assert model.history["step"].iloc[-1] == 9
    assert model.history["epoch"].iloc[-1] == 3


@pytest.mark.parametrize("seed", [None, 5])
def test_a_single_step_is_recorded(adata, seed):
    model = _train(SCVAE(adata, **SMALL), max_steps=1, seed=seed)
    assert model.history["step"].tolist() == [1]
    assert model.history["kl_weight"].tolist() == [1.0]


def test_training_again_goes_on(adata):
    model = _train(SCVAE(adata, **SMALL), early_stopping=False)
    first, weights, started = model.history, _weights(model), []

    class Start(Callback):
        def on_train_start(self, trainer, pl_module):
            started.append(_weights(model))

    _train(model, callbacks=[Start()], early_stopping=False)
    assert _same(started[0], weights)
    assert model.history.iloc[: len(first)].equals(first)
    assert model.history["step"].iloc[-1] == 40
    assert model.history["epoch"].is_monotonic_increasing
    assert model.history["kl_weight"].iloc[len(first) :].eq(1.0).all()


AWAY = {"max_steps": 3, "learning_rate": 0.5}


@pytest.mark.parametrize("kind", [SCVAE, Autoencoder])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_training_again_leaves_no_worse_weights_than_it_starts_from(adata, kind, is_loaded, tmp_path):
    model = _train(kind(adata, **SMALL))
    before, n_rows = _weights(model), len(model.history)
    if is_loaded:
        model.save(tmp_path / "model")
        model = kind.load(tmp_path / "model", adata)
    _train(model, **AWAY)
    assert _same(_weights(model), before)
    assert model.history["step"].iloc[n_rows:].tolist() == [23]
    _train(model, max_steps=60)
    assert not _same(_weights(model), before)


def test_weights_that_are_judged_by_something_else_are_none_to_keep(adata):
    model = _train(SCVAE(adata, **SMALL), max_kl_weight=4.0)
    before = _weights(model)
    # Validation does not know what is maximised: it is the same, then another.
    _train(model, max_kl_weight=4.0, **AWAY)
    assert _same(_weights(model), before)
    _train(model, max_kl_weight=4.0, free_bits=0.5, **AWAY)
    assert not _same(_weights(model), before)


def test_weights_that_have_seen_the_held_out_cells_are_none_to_keep(adata):
    model = _train(SCVAE(adata, **SMALL))
    before = _weights(model)
    model.adata = adata[::-1].copy()
    assert model.validation_indices is None
    _train(model, **AWAY)
    assert not _same(_weights(model), before)


def test_history_is_a_table_of_its_own(adata):
    model = _train(SCVAE(adata, **SMALL))
    table = model.history
    table["step"] = -1
    assert (model.history["step"] > 0).all()
    assert {"step", "epoch", "elbo_train", "elbo_validation", "kl_weight", "learning_rate", "seconds"} <= set(
        model.history.columns
    )


@pytest.mark.parametrize("how", ["signal", "exception"])
def test_an_interrupt_leaves_a_usable_model(adata, how):
    class Interrupting(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 5:
                if how == "exception":
                    raise KeyboardInterrupt
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    model = _train(SCVAE(adata, **SMALL), max_steps=5000, callbacks=[Interrupting()])
    assert signal.getsignal(signal.SIGINT) is before
    assert model.is_trained
    assert np.isfinite(model.get_latent_representation()).all()
    assert model.history["step"].iloc[-1] < 100


def test_a_divergence_says_so_and_a_smaller_learning_rate_then_trains(adata):
    model = SCVAE(adata, **SMALL)
    with pytest.raises(TrainingDivergedError, match=r"step \d+: .*not finite.*smaller learning_rate"):
        _train(model, learning_rate=1e20, max_steps=200, early_stopping=False)
    _train(model)
    assert np.isfinite(model.get_elbo())


def test_a_divergence_leaves_a_trained_model_as_usable_as_before(adata):
    model = _train(SCVAE(adata, **SMALL))
    with pytest.raises(TrainingDivergedError):
        _train(model, learning_rate=1e20, max_steps=200, early_stopping=False)
    assert np.isfinite(model.get_elbo())


class _Counting(Callback):
    def __init__(self):
        self.n = 0

    def on_train_batch_end(self, *args):
        self.n += 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("as_type", [list, tuple, lambda callbacks: callbacks[0]])
def test_callbacks_are_called_and_their_list_is_not_changed(adata, as_type):
    counting = _Counting()
    callbacks = as_type([counting])
    _train(SCVAE(adata, **SMALL), callbacks=callbacks)
    assert counting.n > 0
    if isinstance(callbacks, list):
        assert callbacks == [counting]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps=0"),
        ({"max_steps": None, "max_epochs": 0}, "max_epochs=0"),
        ({"max_steps": None, "max_epochs": 2.5}, "max_epochs=2.5"),
        ({"max_steps": 5, "max_epochs": 2}, "max_epochs=2 and max_steps=5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1}, "batch_size=1.*use_batch_norm"),
        ({"train_size": 0.0}, "train_size"),
        ({"train_size": 0.9, "validation_size": 0.2}, "validation_size"),
        ({"train_size": 1 / 120}, "1 .*cell.*use_batch_norm"),
        ({"kl_warmup": 2.0}, "kl_warmup=2.0"),
        ({"seed": -1}, "seed=-1"),
        ({"early_stopping_patience": 0}, "patience=0"),
    ],
)
def test_impossible_values_are_refused_by_name(adata, options, message):
    with pytest.raises(ValueError, match=message):
        _train(SCVAE(adata, **SMALL), **options)


@pytest.mark.parametrize(
    ("option", "suggestion"),
    [("learning_rat", "learning_rate"), ("presicion", "precision"), ("n_epochs", "max_epochs")],
)
def test_an_unknown_option_is_refused_with_the_nearest(adata, option, suggestion):
    with pytest.raises(TypeError, match=f"'{option}'.*{suggestion}"):
        _train(SCVAE(adata, **SMALL), **{option: 1})


def test_other_options_reach_the_trainer(adata):
    class Precision(Callback):
        def on_fit_start(self, trainer, pl_module):
            self.found = trainer.precision

    precision = Precision()
    _train(SCVAE(adata, **SMALL), precision="bf16-mixed", callbacks=[precision])
    assert precision.found == "bf16-mixed"


def test_the_names_of_scvi_tools_for_the_plan(adata):
    one = _train(SCVAE(adata, **SMALL), plan_kwargs={"lr": 0.01, "weight_decay": 0.1})
    two = _train(SCVAE(adata, **SMALL), learning_rate=0.01, weight_decay=0.1)
    assert _same(_weights(one), _weights(two))
    with pytest.raises(TypeError, match=r"'n_epochs_kl_warmup'.*kl_warmup"):
        _train(one, plan_kwargs={"n_epochs_kl_warmup": 10})


def test_the_final_weight_of_the_divergence_can_be_chosen(adata):
    model = _train(SCVAE(adata, **SMALL), plan_kwargs={"max_kl_weight": 0.25}, early_stopping=False)
    assert model.history["kl_weight"].iloc[-1] == 0.25


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_hidden": 0}, "n_hidden=0 must be a whole number"),
        ({"n_latent": 2.5}, "n_latent=2.5"),
        ({"n_layers": True}, "n_layers=True"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
        ({"dropout_rate": -0.1}, "dropout_rate=-0.1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
@pytest.mark.parametrize("kind", [SCVAE, Autoencoder])
def test_impossible_networks_are_refused(adata, kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(adata, **options)


def test_another_anndata_of_other_cells_gets_a_split_of_its_own(model, simulated):
    other = simulated[:50].copy()
    model.adata = other
    _train(model)
    assert max(model.train_indices.max(), model.validation_indices.max()) < 50
    assert model.get_latent_representation().shape == (50, 3)


def test_an_anndata_without_counts_is_refused(model, adata):
    halves = adata.copy()
    halves.X = halves.X * 0.5
    before = model.adata
    for hand_over in (lambda: setattr(model, "adata", halves), lambda: model.get_latent_representation(halves)):
        with pytest.raises(ValueError, match="not a whole number"):
            hand_over()
    assert model.adata is before


def test_cells_sorted_in_place_are_noticed(model, adata):
    before = model.get_latent_representation(key_added=None)
    order = np.random.default_rng(0).permutation(120)
    adata._inplace_subset_obs(order)
    np.testing.assert_allclose(model.get_latent_representation(), before[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(adata.obsm["X_scvae"], before[order], rtol=1e-4, atol=1e-5)


def test_cells_filtered_in_place_are_noticed(model, adata):
    before = model.get_latent_representation(key_added=None)
    adata._inplace_subset_obs(np.arange(20, 50))
    np.testing.assert_allclose(model.get_latent_representation(), before[20:50], rtol=1e-4, atol=1e-5)


def test_genes_filtered_in_place_are_noticed(model, adata):
    adata._inplace_subset_var(np.arange(20))
    with pytest.raises(ValueError, match="lacks 10 of the 30 genes"):
        model.get_latent_representation()


def test_batches_relabelled_in_place_are_noticed(model, adata):
    before = model.get_normalized_expression(transform_batch="batch_0", return_numpy=True, key_added=None)
    adata.obs["batch"] = adata.obs["batch"].cat.set_categories(["batch_0", "batch_1"])
    adata.obs.loc[:, "batch"] = "batch_0"
    np.testing.assert_allclose(model.get_normalized_expression(return_numpy=True, key_added=None), before, rtol=1e-4)


FORMATS = [
    lambda counts: counts.astype(np.float32),
    lambda counts: counts.astype(np.int64),
    lambda counts: counts.tocsc().astype(np.float64),
    lambda counts: counts.toarray(),
]


@pytest.mark.parametrize("as_stored", FORMATS)
@pytest.mark.parametrize("change", ["values", "array"])
def test_counts_changed_in_place_are_an_error_until_they_are_handed_over(model, adata, as_stored, change):
    adata.X = as_stored(adata.X)
    before = model.get_latent_representation(key_added=None)
    if isinstance(adata.X, np.ndarray):
        adata.X[...] *= 3
    elif change == "values":
        adata.X.data *= 3
    else:
        adata.X.data = adata.X.data * 3
    for ask in (model.get_latent_representation, model.get_elbo, lambda: _train(model)):
        with pytest.raises(RuntimeError, match=r"adata.X has changed since it was read first.*model\.adata = adata"):
            ask()
    model.adata = adata
    after = model.get_latent_representation(key_added=None)
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(model.get_latent_representation(adata.copy()), after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("as_stored", FORMATS)
@pytest.mark.parametrize("column", ["name", "batch"])
def test_counts_that_were_changed_where_a_cell_was_renamed_or_relabelled_as_well(model, adata, as_stored, column):
    adata.X = as_stored(adata.X)
    model.get_elbo()
    adata.X[0] = adata.X[0] * 3
    if column == "name":
        adata.obs_names = [f"new {name}" for name in adata.obs_names]
    else:
        adata.obs[column] = adata.obs[column].to_numpy()[::-1]
    for ask in (model.get_elbo, lambda: _train(model)):
        with pytest.raises(RuntimeError, match=r"adata.X has changed since it was read first.*model\.adata = adata"):
            ask()


def _sort(adata):
    adata._inplace_subset_obs(np.arange(adata.n_obs)[::-1])


def _sort_genes(adata):
    adata._inplace_subset_var(np.arange(adata.n_vars)[::-1])


def _filter(adata):
    adata._inplace_subset_obs(np.arange(60, adata.n_obs))


def _write(adata):
    adata.X[0] = adata.X[0] * 3


@pytest.mark.parametrize("as_stored", FORMATS)
@pytest.mark.parametrize("cells", [slice(0, 80), np.arange(120) < 80], ids=["slice", "mask"])
@pytest.mark.parametrize("change", [_sort, _sort_genes, _filter, _write])
def test_a_view_whose_counts_became_others_is_an_error_until_cells_are_taken_anew(
    model, adata, as_stored, cells, change
):
    adata.X = as_stored(adata.X)
    model.adata = adata[cells]
    expected = model.get_elbo(return_mean=False)
    change(adata)
    for ask in (model.get_elbo, lambda: _train(model)):
        with pytest.raises(RuntimeError, match=r"adata is a view.*model\.adata = adata\[cells\]\.copy\(\)"):
            ask()
    if change is _sort:
        model.adata = adata[::-1][cells].copy()
        np.testing.assert_allclose(model.get_elbo(return_mean=False), expected, rtol=1e-5)


def test_a_sorted_anndata_under_a_view_is_noticed_where_all_totals_are_the_same(adata):
    adata.X = np.random.default_rng(0).permuted(np.tile(np.arange(30.0, dtype=np.float32), (120, 1)), axis=1)
    SCVAE.setup_anndata(adata)
    model = _train(SCVAE(adata[:], **SMALL))
    model.get_elbo()
    _sort(adata)
    with pytest.raises(RuntimeError, match="adata is a view"):
        model.get_elbo()


def test_a_view_is_used_as_any_other_anndata(model, adata):
    expected = model.get_latent_representation(adata[::2].copy(), key_added=None)

    def require_expected():
        found = model.get_latent_representation(key_added=None)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    view = model.adata = adata[::2]
    require_expected()
    adata.obs["new"] = 1
    adata.obs_names = [f"new {name}" for name in adata.obs_names]
    require_expected()
    # The same counts in another format, and in another order of entries.
    for as_stored in FORMATS:
        adata.X = as_stored(sp.csr_matrix(adata.X))
        require_expected()
    assert view.is_view
    _train(model, max_steps=1)
    model.get_latent_representation()
    assert not view.is_view
    assert view.obsm["X_scvae"].shape == (60, 3)
    adata.X[:] = 0
    model.get_elbo()


@pytest.mark.parametrize("as_stored", FORMATS)
def test_counts_that_were_replaced_are_read_anew(model, adata, as_stored):
    adata.X = as_stored(adata.X)
    model.get_elbo()
    adata.X = adata.X * 3
    expected = model.get_latent_representation(adata.copy())
    np.testing.assert_allclose(model.get_latent_representation(), expected, rtol=1e-4, atol=1e-5)


def test_the_same_counts_in_another_order_of_entries_are_no_change(model, adata):
    reversed_rows = adata.X[:, ::-1][:, ::-1].astype(np.int64)
    reversed_rows.has_sorted_indices = False
    for row in range(120):
        entries = slice(*reversed_rows.indptr[row : row + 2])
        for part in (reversed_rows.indices, reversed_rows.data):
            part[entries] = part[entries][::-1].copy()
    adata.X = reversed_rows
    before = model.get_latent_representation(key_added=None)
    adata.X.sort_indices()
    np.testing.assert_allclose(model.get_latent_representation(), before, rtol=1e-4, atol=1e-5)


def test_genes_of_the_own_anndata_that_are_missing_are_zero_on_request_alone(model, adata):
    expected_of = adata.copy()
    expected_of.X = expected_of.X.multiply(np.arange(30) < 20).tocsr()
    expected = model.get_latent_representation(expected_of)
    adata._inplace_subset_var(np.arange(20))
    for _ in range(2):
        with pytest.raises(ValueError, match="lacks 10 of the 30 genes"):
            model.get_latent_representation()
        with pytest.warns(UserWarning, match="10 of 30 genes are missing"):
            found = model.get_latent_representation(fill_missing_genes=True)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="10 of 30 genes are missing"):
        model.get_cell_uncertainty(fill_missing_genes=True)


@pytest.mark.parametrize("labels", ["novel", None, "missing values"])
def test_labels_are_needed_by_models_that_use_them_alone(load, adata, labels):
    other = adata.copy()
    if labels is None:
        del other.obs["cell_type"]
    elif labels == "novel":
        other.obs["cell_type"] = other.obs["cell_type"].cat.rename_categories({"type_1": "novel"})
    else:
        other.obs.loc[other.obs_names[:10], "cell_type"] = np.nan
    for kind in ("nb", "zinb", "normal", "autoencoder"):
        model = load(kind)
        expected = model.get_latent_representation()
        np.testing.assert_allclose(model.get_latent_representation(other), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            np.asarray(model.get_normalized_expression(other)), np.asarray(model.get_normalized_expression()), rtol=1e-4
        )
        if kind != "autoencoder":
            np.testing.assert_allclose(model.get_elbo(other), model.get_elbo(), rtol=1e-4)
    by_label = _train(SCVAE(adata, **SMALL, dispersion="gene-label"))
    with pytest.raises(ValueError, match="labels_key: "):
        by_label.get_elbo(other)


def test_cells_without_a_label_can_be_the_own_ones_and_be_generated_from(model, adata):
    assert model.generate(20, like="cells").obs["cell_type"].notna().all()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"type_1": "novel"})
    found = model.generate(200, like="cells", seed=1).obs
    of_source = adata.obs["cell_type"].loc[found["scvae_source"]].to_numpy()
    assert (found["cell_type"].isna() == (of_source == "novel")).all()
    assert (found["cell_type"].astype(str)[of_source != "novel"] == of_source[of_source != "novel"]).all()
    del adata.obs["cell_type"]
    model.calibrate_intervals(train_options={"max_steps": 1})


def test_where_results_came_from_is_recorded(model, adata, round_trip):
    model.get_latent_representation()
    model.get_normalized_expression(library_size=100.0, n_samples=2, seed=7)
    results = json.loads(round_trip(adata).uns["scvae_ext"])["results"]
    assert set(results) == {'obsm["X_scvae"]', 'layers["scvae_normalized"]'}
    record = results['layers["scvae_normalized"]']
    assert record["model"] == "SCVAE"
    assert record["options"]["n_hidden"] == 16
    assert record["registry"] == model.registry.hash
    assert record["steps"] == model.history["step"].iloc[-1]
    assert record["epochs"] == model.history["epoch"].iloc[-1]
    assert {"library_size": 100.0, "n_samples": 2, "seed": 7}.items() <= record["arguments"].items()
    assert record["weights"] == results['obsm["X_scvae"]']["weights"]


def test_the_fingerprint_of_the_weights_follows_training(model, adata):
    def fingerprint():
        model.get_latent_representation()
        return json.loads(adata.uns["scvae_ext"])["results"]['obsm["X_scvae"]']["weights"]

    before = fingerprint()
    assert fingerprint() == before
    _train(model, learning_rate=0.05)
    assert fingerprint() != before


def test_a_description_for_people(model, adata):
    assert repr(model).startswith("SCVAE(30 genes, n_hidden=16, n_latent=3")
    assert repr(model).endswith("trained")
    assert repr(SCVAE(adata)).endswith("not trained")


def test_the_device(model):
    assert model.device == torch.device("cpu")
    model.to_device("meta")
    assert model.device == torch.device("meta")


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (SCVAE, {}),
        (Autoencoder, {}),
        (CiteVAE, {"protein_expression_obsm_key": "protein"}),
        (MultiomeVAE, {"accessibility_obsm_key": "accessibility"}),
    ],
)
def test_the_default_dtype_of_the_user_changes_nothing(tmp_path, default_dtype, kind, keys):
    found = {}
    for dtype in (torch.float32, torch.float64):
        default_dtype(dtype)
        adata = synthetic_counts(60, 20, n_batches=2, n_proteins=3, n_peaks=12, seed=2)
        kind.setup_anndata(adata, batch_key="batch", **keys)
        model = _train(kind(adata, **SMALL), max_steps=3)
        model.save(tmp_path / str(dtype))
        model = kind.load(tmp_path / str(dtype), adata)
        expression = model.get_normalized_expression(return_numpy=True, key_added=None)
        found[dtype] = weights_hash(model.module), model.get_latent_representation(key_added=None), expression
        assert torch.get_default_dtype() == dtype
    assert found[torch.float64][0] == found[torch.float32][0]
    for one, two in zip(found[torch.float32][1:], found[torch.float64][1:], strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("getter", "arguments"),
    [
        ("get_latent_representation", {"give_mean": False}),
        ("get_elbo", {"return_mean": False}),
        ("get_reconstruction_error", {"return_mean": False}),
        ("get_marginal_ll", {"return_mean": False, "n_mc_samples": 5}),
        ("get_normalized_expression", {"return_numpy": True}),
        ("get_likelihood_parameters", {}),
        ("get_cell_uncertainty", {"labels_key": "cell_type"}),
        ("posterior_predictive_sample", {}),
        ("differential_abundance", {"sample_key": "batch", "num_cells_posterior": 20}),
        ("counterfactual", {"set": {"batch": "batch_1"}}),
        ("counterfactual_effect", {"control": {"batch": "batch_0"}, "treated": {"batch": "batch_1"}}),
    ],
)
def test_a_seed_is_any_whole_number(model, getter, arguments):
    def ask(seed):
        return getattr(model, getter)(seed=seed, **arguments)

    for wrong in (-1, 1.0, "1", None, True):
        with pytest.raises(ValueError, match=f"seed={wrong!r} must be a whole number of at least 0"):
            ask(wrong)
    if getter.startswith("counterfactual"):
        model.calibrate_intervals(train_options={"max_steps": 1})
    assert pickle.dumps(ask(np.int64(3))) == pickle.dumps(ask(3))


class _Failing(Callback):
    def __init__(self, at_step):
        self.at_step = at_step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step >= self.at_step:
            raise RuntimeError("the disk is full")


@pytest.mark.parametrize("kind", [SCVAE, Autoencoder])
def test_a_first_training_that_fails_decides_no_split_and_leaves_the_weights(adata, kind):
    model = kind(adata, **SMALL)
    for error, options in (
        (RuntimeError, {"max_steps": 100, "batch_size": 10, "callbacks": [_Failing(5)]}),
        (TrainingDivergedError, {"max_steps": 200, "learning_rate": 1e20, "early_stopping": False}),
    ):
        with pytest.raises(error):
            _train(model, **options)
        assert not model.is_trained
        assert model.train_indices is model.validation_indices is None
    other, started = kind(adata, **SMALL), []

    class Start(Callback):
        def on_train_start(self, trainer, pl_module):
            started.append({name: value.clone() for name, value in pl_module.module.state_dict().items()})

    for each in (model, other):
        _train(each, train_size=0.5, seed=7, callbacks=[Start()])
    assert len(model.train_indices) == 60
    np.testing.assert_array_equal(model.train_indices, other.train_indices)
    assert _same(*started)
    # One that goes on keeps the split, whether it fails or not.
    with pytest.raises(RuntimeError, match="the disk is full"):
        _train(model, train_size=0.9, callbacks=[_Failing(1)])
    _train(model, train_size=0.9)
    np.testing.assert_array_equal(model.train_indices, other.train_indices)


def test_callbacks_that_cannot_work_are_refused_before_training(adata):
    model = SCVAE(adata, **SMALL)
    with pytest.raises(ValueError, match="enable_checkpointing=True"):
        _train(model, callbacks=ModelCheckpoint())
    with pytest.raises(ValueError, match=r"barebones=True.*early_stopping=False"):
        _train(model, barebones=True)
    assert model.train_indices is None
    _train(model, barebones=True, early_stopping=False)
    assert model.is_trained


def test_advice_to_train_on_more_cells_can_be_followed(adata):
    model = SCVAE(adata, **SMALL, prior="mixture", n_prior_components=110)
    with pytest.raises(ValueError, match="more than the 108 training cells"):
        _train(model)
    _train(model, train_size=0.95)
    assert len(model.train_indices) == 114


def test_a_first_training_on_other_cells_that_fails_decides_no_split_either(model, adata):
    before = _weights(model)
    model.adata = adata[::-1].copy()
    with pytest.raises(RuntimeError, match="the disk is full"):
        _train(model, callbacks=[_Failing(1)])
    assert model.is_trained
    assert model.train_indices is None
    assert _same(_weights(model), before)


@pytest.mark.parametrize("how", ["time", "interrupt"])
def test_a_training_without_an_update_trains_nothing(adata, model, how):
    class Interrupting(Callback):
        def on_train_start(self, *args):
            signal.raise_signal(signal.SIGINT)

    def train(model):
        if how == "interrupt":
            return _train(model, callbacks=Interrupting())
        with pytest.warns(UserWarning, match=r"before its first update.*Timer"):
            return _train(model, callbacks=Timer(duration="00:00:00:00"))

    untrained = SCVAE(adata, **SMALL)
    for each, is_trained in ((untrained, False), (model, True)):
        before, rows = _weights(each), len(each.history)
        train(each)
        assert each.is_trained == is_trained
        assert _same(_weights(each), before)
        assert len(each.history) == rows
    assert untrained.train_indices is None
    _train(untrained)
    assert np.isfinite(untrained.get_elbo())


@pytest.mark.parametrize("is_trained", [False, True])
def test_an_interrupt_as_training_ends_leaves_the_best_weights_of_a_trained_model(adata, is_trained, monkeypatch):
    """A second Ctrl-C is as likely to come while training ends as before."""
    model = SCVAE(adata, **SMALL)
    if is_trained:
        _train(model)
    before = _weights(model)
    restore, release, end = BestWeights.restore, GentleInterrupt.release, GentleInterrupt.end

    def restore_interrupted(best):
        signal.raise_signal(signal.SIGINT)
        restore(best)

    def release_interrupted(interrupt):
        release(interrupt)
        signal.raise_signal(signal.SIGINT)

    def end_at_once(interrupt):
        end(interrupt)
        monkeypatch.setattr(BestWeights, "restore", restore_interrupted)

    monkeypatch.setattr(GentleInterrupt, "end", end_at_once)
    monkeypatch.setattr(GentleInterrupt, "release", release_interrupted)
    with pytest.raises(KeyboardInterrupt):
        _train(model, **(AWAY if is_trained else {}))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert model.is_trained
    assert not model.module.training
    assert model._maximised == (1.0, 0.0)
    assert _same(_weights(model), before) == is_trained
