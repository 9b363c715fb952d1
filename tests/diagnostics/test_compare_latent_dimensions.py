import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from interrupts import interrupt_every_training

from scvae_ext import SCVAE, datasets
from scvae_ext.diagnostics import compare_latent_dimensions
from scvae_ext.diagnostics.compare_latent_dimensions import Setting

QUICK = {"n_samples": 50, "n_optimisation_steps": 30, "enable_progress_bar": False, "accelerator": "cpu"}


# So few samples make evidence imprecise, which the function says.
pytestmark = pytest.mark.filterwarnings("ignore:.*effective sample size:UserWarning")


@pytest.fixture(scope="module")
def three_programmes():
    """Three programmes of ten genes each, every one of which varies by itself."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.3, 30) + 1.2 * np.repeat(rng.normal(size=(500, 3)), 10, axis=1)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    adata = AnnData(sp.csr_matrix(rng.poisson(400 * shares).astype(np.float32)))
    SCVAE.setup_anndata(adata)
    return adata


@pytest.fixture(scope="module")
def compared(three_programmes):
    return compare_latent_dimensions(
        three_programmes, [1, 4], [0, 2], model_options={"n_hidden": 32}, max_steps=150, train_size=0.6, **QUICK
    )


@pytest.mark.slow
def test_the_dependence_shrinks_as_the_latent_space_grows(compared):
    frame = compared.to_frame()
    assert frame.index.tolist() == [(1, 0), (1, 2), (4, 0), (4, 2)]
    assert frame.index.names == ["n_latent", "residual_rank"]
    rms = frame["rms_correlation"]
    assert rms[1, 0] > 0.1
    assert rms[4, 0] < 0.4 * rms[1, 0]
    assert rms[1, 2] < 0.4 * rms[1, 0]
    assert frame["n_modules"][1, 0] >= 1
    assert frame["n_pairs"][1, 0] > frame["n_pairs"][4, 0]


def test_room_for_the_dependence_wins_held_out_evidence(compared):
    frame = compared.to_frame()
    assert compared.best != Setting(1, 0)
    assert frame["difference"][1, 0] < -10 * frame["standard_error"][1, 0]
    assert frame["difference"][compared.best] == 0


def test_figures_are_those_of_the_models_on_the_same_held_out_cells(compared):
    held_out = compared.models[1, 0].test_indices
    assert len(held_out) == 150
    for setting, model in compared.models.items():
        np.testing.assert_array_equal(model.test_indices, held_out)
        assert (model._options["n_latent"], model._options["residual_rank"]) == setting
        assert compared.to_frame()["n_active_factors"][setting] == model.module.residual_rank
        assert compared.dependence[setting].n_cells == 150
    # The programmes need room where there is one dimension.
    assert compared.models[1, 2].module.residual_rank == 2
    per_cell = pd.DataFrame({setting: found.log_evidence for setting, found in compared.evidence.items()})
    difference, error = compared.difference(Setting(4, 0), Setting(1, 0))
    assert difference == pytest.approx((per_cell[4, 0] - per_cell[1, 0]).mean())
    assert error == pytest.approx((per_cell[4, 0] - per_cell[1, 0]).std() / np.sqrt(150))


def test_the_summary_names_every_setting(compared):
    text = str(compared)
    for words in ("1 latent dimension,", "1 latent dimension and 2 residual factors", "4 latent dimensions"):
        assert words in text
    assert "150 held-out cells, correlations of 30 genes." in text


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, r"n_latent=\[\] must be a list"),
        ((5,), {}, "n_latent=5 must be a list"),
        (([2, 2],), {}, "more than once"),
        (([2], [-1]), {}, "residual_rank=-1 must be"),
        (([2],), {"model_options": {"n_latent": 3}}, "'n_latent', which is an argument"),
        (([2],), {"train_size": 0.8, "validation_size": 0.15}, "leave 25 of 500 cells"),
        (([2],), {"train_size": 1.0}, "leave 0 of 500 cells"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused(three_programmes, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        compare_latent_dimensions(three_programmes, *arguments, **options)


def test_an_interrupt_ends_the_comparison(monkeypatch):
    adata = datasets.synthetic_counts(400, 20)
    SCVAE.setup_anndata(adata)
    trainings = interrupt_every_training(monkeypatch)
    options = {"max_steps": 500, "accelerator": "cpu", "enable_progress_bar": False}
    with pytest.raises(KeyboardInterrupt):
        compare_latent_dimensions(adata, [1, 2], **options)
    assert len(trainings) == 1
