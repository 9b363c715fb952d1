import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scvae_ext import SCVAE
from scvae_ext.data import CellSource, align, read_registry
from scvae_ext.models.settings import read_setting


@pytest.fixture(scope="module")
def source() -> CellSource:
    obs = pd.DataFrame(
        {"site": ["x", "y", "x", "y"], "donor": ["a", "b", "c", "a"], "age": [20.0, 30.0, 40.0, 50.0]},
        index=[f"cell_{i}" for i in range(4)],
    )
    adata = ad.AnnData(np.arange(1, 13, dtype=np.float32).reshape(4, 3), obs=obs)
    SCVAE.setup_anndata(
        adata, batch_key="site", categorical_covariate_keys=["donor"], continuous_covariate_keys=["age"]
    )
    return align(adata, read_registry(adata))


def test_values_are_positions_and_standardised_numbers(source):
    setting = read_setting("set", {"site": "y", "donor": "c", "age": 46.18}, source.registry)
    assert (setting.batch, setting.categories) == (1, {0: 2})
    # The mean is 35 and the standard deviation 11.18 (of four cells, not of three).
    assert setting.numbers[0] == pytest.approx(1.0, abs=1e-3)
    assert setting.wanted == [1, 2]
    assert setting.observed_values(source).tolist() == [[0, 0], [1, 1], [0, 2], [1, 0]]


@pytest.mark.parametrize("value", [2, 2.0, "2"])
def test_categories_that_are_numbers_go_by_either_type(value):
    obs = pd.DataFrame({"site": [1.0, 2.0, 1.0, 2.0], "lane": [1, 2, 3, 1]}, index=list("abcd"))
    adata = ad.AnnData(np.ones((4, 2), dtype=np.float32), obs=obs)
    SCVAE.setup_anndata(adata, batch_key="site", categorical_covariate_keys=["lane"])
    setting = read_setting("set", {"site": value, "lane": value}, read_registry(adata))
    assert (setting.batch, setting.categories) == (1, {0: 1})


def test_what_is_set_replaces_what_was_observed_and_the_rest_stays(source):
    minibatch = source.minibatch(np.arange(4))
    changed = read_setting("set", {"donor": "b"}, source.registry).apply(minibatch)
    assert changed.categorical_covariates[:, 0].tolist() == [1, 1, 1, 1]
    assert changed.batch.tolist() == minibatch.batch.tolist() == [0, 1, 0, 1]
    assert changed.continuous_covariates.tolist() == minibatch.continuous_covariates.tolist()
    assert minibatch.categorical_covariates[:, 0].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("asked", "observed"),
    [
        ({"site": "x"}, [True, False, True, False]),
        ({"donor": "a"}, [True, False, False, True]),
        ({"site": "y", "donor": "a"}, [False, False, False, True]),
        # Half a standard deviation is 5.59 years.
        ({"age": 34.5}, [False, True, True, False]),
        ({"age": 35.7}, [False, False, True, False]),
    ],
)
def test_cells_count_as_observed_in_a_setting_that_they_have(source, asked, observed):
    assert read_setting("set", asked, source.registry).is_observed(source).tolist() == observed


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"must say what is set, for example \{'site': \.\.\.\}"),
        ({"place": "x"}, "'place', which is no covariate of the model; known are 'site', 'donor', 'age'"),
        ({"site": "z"}, "'site' to 'z', which was not there at set-up; known are 'x', 'y'"),
        ({"age": "old"}, "'age' to 'old': pass a finite number"),
        ({"age": float("nan")}, "'age' to nan: pass a finite number"),
        ({"age": True}, "'age' to True: pass a finite number"),
    ],
)
def test_what_cannot_be_set_is_an_error_that_says_what_can(source, asked, message):
    with pytest.raises(ValueError, match=message):
        read_setting("set", asked, source.registry)


def test_a_model_without_covariates_has_nothing_to_set():
    adata = ad.AnnData(np.ones((3, 2), dtype=np.float32))
    SCVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match=r"the model has none: pass batch_key="):
        read_setting("set", {"site": "x"}, read_registry(adata))
