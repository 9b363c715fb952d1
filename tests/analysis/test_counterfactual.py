from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scvae_ext as sv
from scvae_ext.analysis import CounterfactualEffect, Overlap, calibrate_intervals, setting_overlap
from scvae_ext.data import align, read_registry
from scvae_ext.models.settings import read_setting
from scvae_ext.models.state_shift import GroupedStates, state_shift

SETTINGS = {"control": {"batch": "batch_0"}, "treated": {"batch": "batch_1"}}


def _known(confounded):
    """Counts under an intervention on all genes, given to cells by chance or by type, and expression under either."""
    adata = sv.datasets.synthetic_counts(1600, 100, n_batches=2, library_size=400, seed=2)
    cell_type, batch = (adata.obs[key].cat.codes.to_numpy() for key in ("cell_type", "batch"))
    treated = np.where(cell_type <= 1, 0.0, np.where(cell_type == 2, 0.5, 1.0)) if confounded else np.full(1600, 0.5)
    kept = np.random.default_rng(0).random(1600) < np.where(batch == 1, treated, 1 - treated)
    adata = adata[kept].copy()
    states = adata.obsm["latent"].astype(float) @ adata.varm["loadings"].T + adata.var["log_baseline"].to_numpy()
    truth = []
    for setting in (0, 1):
        expression = np.exp(states + adata.varm["batch_effect"][:, setting])
        truth.append(expression / expression.sum(1, keepdims=True))
    adata.obs["dose"] = np.linspace(0, 10, adata.n_obs)
    adata.obs["site"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 3, "north", "south"))
    return adata, truth


def _trained(adata, seed=0, **setup):
    sv.SCVAE.setup_anndata(adata, **setup)
    model = sv.SCVAE(adata, n_latent=5, seed=seed)
    model.train(max_steps=500, accelerator="cpu", enable_progress_bar=False)
    model.calibrate_intervals(train_options={"accelerator": "cpu"})
    return model


@pytest.fixture(scope="module")
def randomised():
    adata, truth = _known(confounded=False)
    return _trained(adata, batch_key="batch"), truth


@pytest.fixture(scope="module")
def refitted(randomised):
    """The same, and three models that other seeds gave: how wide intervals are differs from fit to fit."""
    model, truth = randomised
    return [model, *(_trained(model.adata.copy(), seed, batch_key="batch") for seed in (1, 2, 3))], truth


@pytest.fixture(scope="module")
def with_covariates():
    adata, _ = _known(confounded=False)
    adata = adata[:200].copy()
    sv.SCVAE.setup_anndata(
        adata, batch_key="site", categorical_covariate_keys=["batch"], continuous_covariate_keys=["dose"]
    )
    model = sv.SCVAE(adata, n_latent=2)
    model.train(max_steps=20, accelerator="cpu", enable_progress_bar=False)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_intervals_of_counterfactual_expression_hold_the_known_intervention(refitted, level):
    models, truth = refitted
    switched = (models[0].adata.obs["batch"] == "batch_0").to_numpy()
    shares = []
    for model in models:
        found = model.counterfactual({"batch": "batch_1"}, level=level, key_added=None)
        inside = (truth[1] >= found.lower) & (truth[1] <= found.upper)
        shares.append(inside[switched].mean())
    assert np.mean(shares) == pytest.approx(level, abs=0.05)


@pytest.mark.parametrize("shift_within", [None, "cell_type"])
@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_intervals_of_effects_hold_the_known_intervention(randomised, level, shift_within):
    model, (control, treated) = randomised
    found = model.counterfactual_effect(**SETTINGS, groupby="cell_type", level=level, shift_within=shift_within)
    group = model.adata.obs["cell_type"].astype(str).to_numpy()
    truth = [np.log2(treated[group == name].mean(0) / control[group == name].mean(0)) for name in found.groups]
    # Errors of a gene are shared by the groups: 100 independent ones.
    inside = np.abs(found.lfc - truth) <= found.half_width
    assert inside.mean() == pytest.approx(level, abs=max(0.05, 3 * np.sqrt(level * (1 - level) / 100)))
    assert np.corrcoef(found.lfc.ravel(), np.ravel(truth))[0, 1] > 0.9


def test_an_effect_is_the_ratio_of_mean_expression(randomised):
    model, _ = randomised
    cells = np.array([3, 500, 20])
    found = model.counterfactual_effect(**SETTINGS, indices=cells, gene_list=["gene_9", "gene_0"])
    means = [
        model.get_normalized_expression(
            indices=cells, transform_batch=batch, gene_list=["gene_9", "gene_0"], return_numpy=True, key_added=None
        ).mean(0)
        for batch in ("batch_0", "batch_1")
    ]
    np.testing.assert_allclose(found.lfc[0], np.log2(means[1] / means[0]), rtol=1e-3)
    assert found.groups.tolist() == ["all"]
    assert found.n_cells.tolist() == [3]
    assert found.var_names.tolist() == ["gene_9", "gene_0"]


def test_an_intervention_by_chance_is_not_called_confounded(randomised):
    model, _ = randomised
    found = model.counterfactual({"batch": "batch_1"}, key_added=None)
    assert not found.overlap.dependence.is_notable
    assert found.overlap.is_supported.mean() > 0.95
    assert "latent state says little about the setting" in str(found)
    assert "Assumed, and not tested" in str(found)


def test_a_confounded_intervention_is_flagged():
    adata, _ = _known(confounded=True)
    sv.SCVAE.setup_anndata(adata, batch_key="batch")
    model = sv.SCVAE(adata, n_latent=5)
    model.train(max_steps=300, accelerator="cpu", enable_progress_bar=False)
    model.calibrate_intervals(train_options={"accelerator": "cpu", "max_steps": 5})
    found = model.counterfactual({"batch": "batch_1"}, key_added=None)
    assert found.overlap.dependence.is_notable
    assert found.overlap.dependence.auc > 0.85
    never_treated = adata.obs["cell_type"].isin(["type_0", "type_1"]).to_numpy()
    supported = found.to_frame()["is_supported"].to_numpy()
    assert supported[never_treated].mean() < 0.9
    assert never_treated[~supported].mean() > 0.8
    assert supported[adata.obs["batch"] == "batch_1"].mean() > 0.95
    assert "can be told from its latent state" in str(found)


def test_results_are_written_and_follow_the_cells_asked_for(randomised):
    model, _ = randomised
    adata = model.adata
    whole = model.counterfactual({"batch": "batch_0"})
    np.testing.assert_array_equal(adata.layers["scvae_counterfactual_lower"], whole.lower)
    np.testing.assert_array_equal(adata.obs["scvae_counterfactual_supported"], whole.overlap.is_supported)
    cells = adata.obs_names[[4, 1]]
    some = model.counterfactual({"batch": "batch_0"}, indices=cells, gene_list=["gene_3", "gene_1"], n_samples=2)
    np.testing.assert_allclose(some.median, whole.median[np.ix_([4, 1], [3, 1])], rtol=1e-4)
    assert some.to_frame().index.tolist() == cells.tolist()
    assert [counts.shape for counts in some.counts] == [(2, 2)] * 2


def test_counts_in_the_observed_setting_are_distributed_as_those_observed(randomised):
    model, _ = randomised
    adata = model.adata
    cells = (adata.obs["batch"] == "batch_0").to_numpy()
    drawn = model.counterfactual({"batch": "batch_0"}, indices=cells, key_added=None).counts[0].toarray()
    seen = adata.X[cells].toarray()
    busy = seen.mean(0) > 1
    np.testing.assert_allclose(drawn.mean(0)[busy], seen.mean(0)[busy], rtol=0.2)
    np.testing.assert_allclose(np.log(drawn.var(0)[busy]), np.log(seen.var(0)[busy]), atol=0.5)
    # The noise of each cell was abducted: what it showed beyond its state it shows again.
    assert np.corrcoef(drawn[:, busy].ravel(), seen[:, busy].ravel())[0, 1] > 0.7


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "must say what is set"),
        ({"condition": "a"}, "known are 'site', 'batch', 'dose'"),
        ({"batch": "batch_7"}, "known are 'batch_0', 'batch_1'"),
        ({"site": "east"}, "known are 'north', 'south'"),
        ({"dose": "high"}, "pass a finite number"),
        ({"dose": float("inf")}, "pass a finite number"),
    ],
)
def test_settings_that_do_not_exist(with_covariates, asked, message):
    with pytest.raises(ValueError, match=message):
        with_covariates.counterfactual(asked)


def test_models_without_covariates():
    adata = sv.datasets.synthetic_counts(100, 20)
    sv.SCVAE.setup_anndata(adata)
    model = sv.SCVAE(adata, n_latent=2)
    model.train(max_steps=2, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(ValueError, match="the model has none"):
        model.counterfactual({"batch": "b"})


def test_effects_of_settings_that_do_not_compare(with_covariates):
    with pytest.raises(ValueError, match="set the same covariates in both"):
        with_covariates.counterfactual_effect({"site": "north"}, {"batch": "batch_1"})
    with pytest.raises(ValueError, match="groupby='type' is not a column"):
        with_covariates.counterfactual_effect({"site": "north"}, {"site": "south"}, groupby="type")


def test_states_are_moved_by_what_their_own_group_knows_of_the_setting(randomised):
    model, _ = randomised
    adata = model.adata
    adata.obs["half"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, "odd", "even"))
    latent = model.get_latent_representation(key_added=None)
    batch, half = adata.obs["batch"].to_numpy(), adata.obs["half"].to_numpy()
    cells = np.array([np.flatnonzero((batch == "batch_0") & (half == name))[0] for name in ("odd", "even")])
    difference = [
        latent[(half == name) & (batch == "batch_1")].mean(0) - latent[(half == name) & (batch == "batch_0")].mean(0)
        for name in ("odd", "even")
    ]
    moved = torch.from_numpy((latent[cells] + np.stack(difference)).astype(np.float32))
    with torch.no_grad():
        hidden = model.module.decoder(moved, torch.tensor([[0.0, 1.0]]).expand(2, 2))
        expected = model.module.likelihood.expression(hidden).numpy()
    found = model.counterfactual({"batch": "batch_1"}, indices=cells, shift_within="half", key_added=None)
    np.testing.assert_allclose(found.median, expected, rtol=1e-3)
    # Where they were observed, states stay.
    seen = model.counterfactual({"batch": "batch_0"}, indices=cells, shift_within="half", key_added=None)
    plain = model.counterfactual({"batch": "batch_0"}, indices=cells, key_added=None)
    np.testing.assert_allclose(seen.median, plain.median, rtol=1e-5)


def _grouped(states, groups, treated):
    """Cells with known states, of which only the batch matters."""
    n = len(states)
    adata = ad.AnnData(np.ones((n, 2), dtype=np.float32), obs={"batch": pd.Categorical(np.where(treated, "b", "a"))})
    sv.SCVAE.setup_anndata(adata, batch_key="batch")
    registry = read_registry(adata)
    setting = read_setting("set", {"batch": "b"}, registry)
    return GroupedStates(align(adata, registry), np.asarray(states, dtype=np.float32), np.asarray(groups), "t"), setting


def test_a_group_never_seen_in_the_setting_is_moved_as_those_like_it():
    rng = np.random.default_rng(0)
    centres, shifts = {"x": [0, 0], "y": [8, 0], "z": [0, 6]}, {"x": [1, 0], "y": [0, 2]}
    states, groups, treated = [], [], []
    for name, centre in centres.items():
        for is_treated in (False, True) if name in shifts else (False,):
            cells = rng.normal(size=(500, 2))
            # Means are exact, so that the average has a closed form; one latent dimension varies twice as much.
            cells = (cells - cells.mean(0)) / cells.std(0) * [1.0, 2.0] + centre
            states.append(cells + np.array(shifts.get(name, [0, 0])) * is_treated)
            groups += [name] * 500
            treated += [is_treated] * 500
    own, setting = _grouped(np.concatenate(states), groups, treated)
    shift = state_shift(own, setting, own, np.array([0, 500, 1000, 1500, 2000]))
    # Squared distances of z, in standard deviations: 3^2 to x, and 8^2 + 3^2 to y.
    weights = np.array([1 / 9, 1 / 73])
    expected = weights @ np.array([[1, 0], [0, 2]]) / weights.sum()
    np.testing.assert_allclose(shift, [[1, 0], [0, 0], [0, 2], [0, 0], expected], atol=1e-4)


def test_groups_with_few_cells_or_none_at_all_say_nothing_of_a_shift():
    rng = np.random.default_rng(1)
    treated = np.arange(60) % 2 == 1
    groups = np.array(["x"] * 40 + ["y"] * 10 + [""] * 10)
    states = rng.normal(size=(60, 3)) + treated[:, None] * np.where(groups == "x", 1, 50)[:, None]
    own, setting = _grouped(states, groups, treated)
    shift = state_shift(own, setting, own, np.array([0, 42, 52]))
    expected = states[:40][treated[:40]].mean(0) - states[:40][~treated[:40]].mean(0)
    np.testing.assert_allclose(shift, np.tile(expected, (3, 1)), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*kept without a test:UserWarning")
@pytest.mark.parametrize("options", [{"residual_rank": 2}, {"latent_distribution": "ln"}])
def test_shifts_of_states_that_are_not_the_latent_space(options):
    adata, _ = _known(confounded=True)
    adata = adata[:300].copy()
    sv.SCVAE.setup_anndata(adata, batch_key="batch")
    model = sv.SCVAE(adata, n_latent=3, **options)
    # Without held-out cells residual factors stay, needed or not.
    model.train(max_steps=60, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    assert model.module.residual_rank == options.get("residual_rank", 0)
    model.calibrate_intervals(train_options={"accelerator": "cpu", "max_steps": 2})
    cells = (adata.obs["batch"] == "batch_0").to_numpy()
    adata.obs["one"] = "all"
    found = model.counterfactual({"batch": "batch_1"}, indices=cells, shift_within="one", key_added=None)
    with torch.no_grad():
        minibatch = next(align(adata, model.registry).minibatches(np.arange(adata.n_obs), adata.n_obs))
        states = model.module.encode(minibatch).qz.loc
        moved = states[cells] + states[~cells].mean(0) - states[cells].mean(0)
        there = replace(minibatch, batch=torch.ones_like(minibatch.batch))
        everywhere = torch.zeros_like(states)
        everywhere[cells] = moved
        hidden = model.module.decode_hidden(everywhere, there)
        expected = model.module.likelihood.expression(hidden)[cells].numpy()
    np.testing.assert_allclose(found.median, expected, rtol=1e-3)


def test_groups_within_which_states_cannot_be_compared(randomised, with_covariates):
    model, _ = randomised
    model.adata.obs["alone"] = pd.Categorical(model.adata.obs_names.to_numpy())
    with pytest.raises(ValueError, match="No group of 'alone' has 10 cells"):
        model.counterfactual({"batch": "batch_1"}, shift_within="alone", key_added=None)
    with pytest.raises(ValueError, match="shift_within='type' is not a column"):
        model.counterfactual({"batch": "batch_1"}, shift_within="type", key_added=None)
    with pytest.raises(ValueError, match="not of numbers"):
        with_covariates.counterfactual({"dose": 3}, shift_within="site", key_added=None)


def test_categorical_and_continuous_covariates_are_set(with_covariates):
    adata = with_covariates.adata
    both = {"batch": "batch_1", "dose": 2.5}
    found = with_covariates.counterfactual(both, key_added=None)
    as_if = adata.copy()
    as_if.obs["batch"], as_if.obs["dose"] = "batch_1", 2.5
    # The encoder sees counts alone, so that relabelled cells have the same state.
    expected = with_covariates.get_normalized_expression(as_if, n_samples=1, return_numpy=True, key_added=None)
    np.testing.assert_allclose(found.median, expected, rtol=1e-4)
    assert not np.allclose(found.median, with_covariates.counterfactual({"dose": 9}, key_added=None).median, rtol=1e-3)


def test_cells_of_another_anndata(with_covariates):
    other = with_covariates.adata[5:25].copy()
    found = with_covariates.counterfactual_effect({"site": "north"}, {"site": "south"}, adata=other, groupby="batch")
    own = with_covariates.counterfactual_effect(
        {"site": "north"}, {"site": "south"}, indices=np.arange(5, 25), groupby="batch"
    )
    np.testing.assert_allclose(found.lfc, own.lfc, atol=1e-4)
    assert (found.half_width > 0).all()


def test_an_effect_as_a_table_and_in_words(randomised):
    model, _ = randomised
    found = model.counterfactual_effect(**SETTINGS, groupby="cell_type")
    assert isinstance(found, CounterfactualEffect)
    frame = found.to_frame()
    assert len(frame) == 5 * 100
    first = frame.loc["type_0"]
    assert first["lfc"].abs().is_monotonic_decreasing
    column = found.var_names.get_loc(first.index[0])
    row = first.iloc[0]
    assert row["lfc"] == found.lfc[0, column]
    assert row["lfc_upper"] - row["lfc_lower"] == pytest.approx(2 * found.half_width[0, column])
    assert row["excludes_zero"] == (row["lfc_lower"] > 0 or row["lfc_upper"] < 0)
    assert row["n_cells"] == (model.adata.obs["cell_type"] == "type_0").sum()
    n_sure = int(first["excludes_zero"].sum())
    assert f"type_0: the 90 % interval leaves out zero for {n_sure} genes" in str(found)
    assert str(found).startswith("Effect of batch = batch_1 against batch = batch_0 on 100 genes.")


def test_means_are_over_cells_and_samples_however_many_fit_into_memory(with_covariates, monkeypatch):
    model, options = with_covariates, {"indices": np.arange(30), "groupby": "cell_type", "n_samples": 4}
    settings = {"control": {"site": "north"}, "treated": {"site": "south"}}
    found = model.counterfactual_effect(**settings, **options)
    group = model.adata.obs["cell_type"].astype(str).to_numpy()[:30]
    for site, means in (("north", found.mean_control), ("south", found.mean_treated)):
        of_cells = model.get_normalized_expression(
            indices=np.arange(30), transform_batch=site, n_samples=4, return_numpy=True, key_added=None
        )
        expected = [of_cells[group == name].mean(0) for name in found.groups]
        np.testing.assert_allclose(means, expected, rtol=1e-3)
    monkeypatch.setattr("scvae_ext.models.cells.MAX_ENTRIES", 30 * 100)
    in_parts = model.counterfactual_effect(**settings, **options)
    np.testing.assert_allclose(in_parts.mean_treated, found.mean_treated, rtol=1e-3)


def test_a_state_has_to_be_seen_under_both_settings():
    near, far = np.ones(5), np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    found = CounterfactualEffect(
        control={"batch": "a"},
        treated={"batch": "b"},
        mean_control=np.ones((2, 1)),
        mean_treated=np.full((2, 1), 2.0),
        lfc=np.ones((2, 1)),
        half_width=np.full((2, 1), 0.5),
        level=0.9,
        groups=pd.Index(["y", "x"]),
        n_cells=np.array([2, 3]),
        overlap_control=Overlap(near, far, None),
        overlap_treated=Overlap(np.array([0.0, 1.0, 1.0, 1.0, 1.0]), near, None),
        group_of_cell=np.array(["x", "x", "x", "y", "y"]),
        var_names=pd.Index(["gene"]),
    )
    assert found.is_supported.tolist() == [False, True, False, True, False]
    np.testing.assert_allclose(found.supported_share, [1 / 2, 1 / 3])
    np.testing.assert_allclose(found.to_frame().loc["x", "supported_share"], 1 / 3)
    assert "y: the 90 % interval leaves out zero for 1 genes; 50 % of 2 cells" in str(found)


def test_rows_of_the_table_are_groups_as_given_and_in_each_the_largest_effects_first():
    lfc = np.array([[0.5, -2.0, 1.0], [3.0, 0.0, -4.0]])
    nothing = Overlap(np.ones(2), np.ones(2), None)
    found = CounterfactualEffect(
        control={"batch": "a"},
        treated={"batch": "b"},
        mean_control=np.ones((2, 3)),
        mean_treated=2**lfc,
        lfc=lfc,
        half_width=np.full((2, 3), 0.75),
        level=0.9,
        groups=pd.Index(["y", "x"]),
        n_cells=np.array([1, 1]),
        overlap_control=nothing,
        overlap_treated=nothing,
        group_of_cell=np.array(["x", "y"]),
        var_names=pd.Index(["g", "h", "i"]),
    )
    frame = found.to_frame()
    assert frame.index.tolist() == [("y", "h"), ("y", "i"), ("y", "g"), ("x", "i"), ("x", "g"), ("x", "h")]
    assert frame["lfc"].tolist() == [-2.0, 1.0, 0.5, -4.0, 3.0, 0.0]
    assert frame["excludes_zero"].tolist() == [True, True, False, True, True, False]
    np.testing.assert_allclose(frame["mean_treated"], 2 ** frame["lfc"])


def test_errors_are_those_of_the_same_cells_wherever_they_are(with_covariates):
    """Of a view or a copy they are those of the model's own cells; after another order they are found out anew."""
    model, before = with_covariates, with_covariates.adata
    settings = {"control": {"site": "north"}, "treated": {"site": "south"}, "groupby": "cell_type"}
    some = np.arange(150)
    expected = model.counterfactual_effect(**settings, indices=some).half_width
    for same in (before[some], before[some].copy()):
        np.testing.assert_array_equal(model.counterfactual_effect(**settings, adata=same).half_width, expected)
    others = before[some].copy()
    others.obs_names = [f"other_{name}" for name in others.obs_names]
    assert not np.allclose(model.counterfactual_effect(**settings, adata=others).half_width, expected)


def test_other_cells_of_the_model_need_a_new_calibration(with_covariates, monkeypatch):
    model, before = with_covariates, with_covariates.adata
    replicate = model._refitted()
    model.adata = before.copy()
    assert model._refitted() is replicate
    asked = []
    monkeypatch.setattr(model, "calibrate_intervals", lambda: asked.append(model.adata.n_obs))
    order = np.argsort(before.obs["cell_type"].to_numpy(), kind="stable")
    relabelled = before.copy()
    relabelled.obs["site"] = relabelled.obs["site"].cat.rename_categories({"north": "south", "south": "north"})
    for other in (before[order].copy(), before[:100].copy(), relabelled):
        model.adata = other
        model._refitted()
    model.adata = before
    assert model._refitted() is replicate
    assert asked == [200, 100, 200]


@pytest.mark.parametrize("groupby", [None, "cell_type"])
def test_effects_their_width_and_the_overlap_are_those_of_states_that_were_moved(with_covariates, groupby):
    """All of it over again: states moved by the difference of their type, decoded, and compared with the truth."""
    model = with_covariates
    adata, replicate = model.adata, model._refitted()
    seen, cell_type = adata.obs["batch"].cat.codes.to_numpy(), adata.obs["cell_type"].cat.codes.to_numpy()
    group = np.zeros(200, dtype=np.int64) if groupby is None else cell_type
    column = [covariate.key for covariate in model.registry.categorical_covariates].index("batch")

    def moved(states, setting):
        there = states.copy()
        for code in range(5):
            of_type = cell_type == code
            difference = states[of_type & (seen == setting)].mean(0) - states[of_type & (seen != setting)].mean(0)
            there[of_type & (seen != setting)] += difference
        return there

    def log_ratio(module, minibatch, states):
        means = []
        for setting in (0, 1):
            categories = minibatch.categorical_covariates.clone()
            categories[:, column] = setting
            hidden = module.decode_hidden(
                torch.from_numpy(moved(states, setting)), replace(minibatch, categorical_covariates=categories)
            )
            values = module.likelihood.expression(hidden).double().numpy()
            means.append(np.stack([values[group == code].mean(0) for code in np.unique(group)]))
        return np.log2(means[1] / means[0])

    model.module.eval()
    replicate.module.eval()
    with torch.no_grad():
        own = model._own_source().minibatch(np.arange(200))
        drawn = replicate.cells.source.minibatch(np.arange(200))
        states, again = model.module.encode(own).qz.loc.numpy(), replicate.module.encode(drawn).qz.loc.numpy()
        expected = log_ratio(model.module, own, states)
        error = log_ratio(replicate.module, drawn, again) - log_ratio(model.module, drawn, replicate.latent)
    found = model.counterfactual_effect(
        {"batch": "batch_0"}, {"batch": "batch_1"}, groupby=groupby, shift_within="cell_type", n_samples=1
    )
    np.testing.assert_allclose(found.lfc, expected, atol=1e-4)
    for row, of_group in zip(found.half_width, error, strict=True):
        calibration = calibrate_intervals(of_group[None], np.zeros((1, 100)), replicate.mean_counts)
        np.testing.assert_allclose(row, calibration.half_width(np.zeros((1, 100)), 0.9)[0], rtol=1e-3, atol=1e-5)
    for setting, overlap in enumerate((found.overlap_control, found.overlap_treated)):
        at_home = setting_overlap(states, seen == setting, moved(states, setting))
        np.testing.assert_allclose(overlap.ratio, at_home.ratio, atol=0.03)
        np.testing.assert_allclose(overlap.distance_rank, at_home.distance_rank, atol=0.03)
        assert overlap.dependence.auc == pytest.approx(at_home.dependence.auc, abs=1e-3)


def test_ten_cells_in_either_setting_are_enough_to_compare_a_group():
    rng = np.random.default_rng(2)
    treated = np.arange(61) % 2 == 1
    treated[40:] = np.arange(21) < 10
    # Of the second group ten cells are treated and eleven are not; of nine nothing is said.
    groups = np.array(["x"] * 40 + ["y"] * 21)
    states = rng.normal(size=(61, 3)) + treated[:, None] * np.where(groups == "x", 1, 50)[:, None]
    for n_treated, source in ((10, "y"), (9, "x")):
        kept = np.r_[np.arange(40), np.arange(50 - n_treated, 61)]
        own, setting = _grouped(states[kept], groups[kept], treated[kept])
        shift = state_shift(own, setting, own, np.array([len(kept) - 1]))
        known = groups[kept] == source
        expected = (states[kept][known & treated[kept]]).mean(0) - (states[kept][known & ~treated[kept]]).mean(0)
        np.testing.assert_allclose(shift[0], expected, rtol=1e-4)
