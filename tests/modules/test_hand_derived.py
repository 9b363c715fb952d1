import copy
import inspect

import pytest
import torch
from minibatches import make_minibatch

from scvae_ext.likelihoods import gene_statistics
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules import VAE, HandDerivedElbo, ImportanceWeightedBound, SampledElbo
from scvae_ext.modules import vae as vae_module
from scvae_ext.nn import Dispersion

DATA = {"n_batches": 3, "n_categories": (2, 3), "n_continuous": 1}
NETWORKS = {
    "default": {},
    "deep": {"n_layers": 2, "encode_covariates": True},
    "first layer": {"n_layers": 2, "deeply_inject_covariates": False, "encode_covariates": True},
}
KL_WEIGHT, N_TRAIN = 0.3, 50


def prepared(data, n_genes=40, n_cells=37, rate=0.3, **options):
    minibatch = make_minibatch(n_cells, n_genes, **data, rate=rate)
    vae = VAE(n_genes, **data, n_hidden=16, n_latent=3, **options)
    vae.initialise(gene_statistics([minibatch]))
    for part in vae.modules():
        if isinstance(part, Dispersion):
            # All genes start from one dispersion, about which their prior has no slope.
            with torch.no_grad():
                part.log_value.add_(torch.linspace(-2, 2, n_genes))
    return vae.train(), minibatch


def in_double_precision(minibatch):
    counts = minibatch.counts
    return Minibatch(
        SparseCounts(counts.values.double(), counts.cell_index, counts.gene_index, counts.n_cells, counts.n_genes),
        minibatch.library_size.double(),
        minibatch.batch,
        minibatch.label,
        minibatch.categorical_covariates,
        minibatch.continuous_covariates.double(),
    )


def by_graph(module, minibatch, penalty_share=1.0):
    objective = module.objective(minibatch)
    (-objective.score(KL_WEIGHT, penalty_share).mean() - module.log_prior() / N_TRAIN).backward()
    return objective


def require_same(found, expected, module, exact):
    for name, term in expected.terms().items():
        torch.testing.assert_close(found.terms()[name].double(), term.detach(), rtol=2e-6, atol=1e-4, msg=name)
    for (name, ours), theirs in zip(module.named_parameters(), exact.parameters(), strict=True):
        # Roundings of 6e-8 in a hundred sums and more, the largest gradient of a parameter as the scale.
        scale = float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad.double() / scale, theirs.grad / scale, rtol=0, atol=2e-5, msg=name)
        assert scale > 0


@pytest.mark.parametrize("rate", [0.3, 3.0], ids=["sparse", "dense"])
@pytest.mark.parametrize("data", [{}, DATA], ids=["one batch", "batches and covariates"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_gradients_are_those_of_the_definition_in_double_precision(likelihood, network, data, rate, monkeypatch):
    vae, minibatch = prepared(data, rate=rate, gene_likelihood=likelihood, dropout_rate=0.0, **NETWORKS[network])
    exact, noise = copy.deepcopy(vae).double(), torch.randn(minibatch.n_cells, 3)
    by_hand = HandDerivedElbo.of(vae)
    assert HandDerivedElbo.of(exact) is None
    assert HandDerivedElbo.takes(minibatch)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, **options: noise.to(options.get("dtype", torch.float32)))
        found = by_hand.backward(minibatch, KL_WEIGHT, N_TRAIN)
        expected = by_graph(exact, in_double_precision(minibatch))
    require_same(found, expected, vae, exact)
    for ours, theirs in zip(vae.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty_share", [0.3, 1.0])
@pytest.mark.parametrize("n_cells", [3, 37])
def test_gradients_with_a_penalty_on_batches_are_those_of_the_definition(n_cells, penalty_share, monkeypatch):
    vae, minibatch = prepared(DATA, n_cells=n_cells, dropout_rate=0.0)
    exact, noise = copy.deepcopy(vae).double(), torch.randn(minibatch.n_cells, 3)
    module, exactly = SampledElbo(vae, 1, 0.0, 20.0), SampledElbo(exact, 1, 0.0, 20.0)
    with monkeypatch.context() as patch:
        # A graph has its samples on a leading axis.
        patch.setattr(
            torch,
            "randn",
            lambda *shape, dtype=torch.float32, **_: noise.to(dtype).view(shape[0] if len(shape) == 1 else shape),
        )
        found = HandDerivedElbo.of(module).backward(minibatch, KL_WEIGHT, N_TRAIN, penalty_share)
        expected = by_graph(exactly, in_double_precision(minibatch), penalty_share)
    assert (float(found.dependence) != 0) == (n_cells > 3)
    require_same(found, expected, module, exactly)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_random_draws_are_those_of_the_graph(likelihood):
    vae, minibatch = prepared(DATA, gene_likelihood=likelihood, n_layers=2, dropout_rate=0.3)
    other = copy.deepcopy(vae)
    torch.manual_seed(1)
    found = HandDerivedElbo(vae).backward(minibatch, KL_WEIGHT, N_TRAIN)
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    expected = by_graph(other, minibatch)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(found.score(), expected.score().detach(), rtol=1e-6, atol=1e-5)
    for ours, theirs in zip(vae.parameters(), other.parameters(), strict=True):
        scale = theirs.grad.abs().max()
        torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, rtol=0, atol=1e-5)


def test_gradients_of_the_minibatch_before_are_replaced():
    vae, minibatch = prepared({}, dropout_rate=0.0)
    by_hand = HandDerivedElbo(vae)
    gradients = []
    for _ in range(2):
        torch.manual_seed(1)
        by_hand.backward(minibatch, KL_WEIGHT, N_TRAIN)
        gradients.append([value.grad.clone() for value in vae.parameters()])
        by_hand.backward(make_minibatch(9, 40, seed=3), 1.0, N_TRAIN)
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "poisson"},
        {"gene_likelihood": "normal"},
        {"dispersion": "gene-cell"},
        {"dispersion": "gene-batch"},
        {"use_size_factor": True},
        {"use_observed_lib_size": False},
        {"latent_distribution": "ln"},
        {"prior": "mixture"},
        {"prior": "vamp"},
        {"residual_rank": 1},
        {"decoder": "linear"},
        {"encoder_normalisation": "layer"},
        {"decoder_normalisation": "none"},
        {"batch_representation": "embedding"},
        {"gene_likelihood": "zinb", "zero_inflation": "gene"},
        {"gene_likelihood": "zinb", "zero_inflation_prior": (1.0, 9.0)},
        {"dropout_rate": 1.0},
        {"proteins_measured": ((True, True),) * 2},
        {"n_known_labels": 2},
        {"peaks_measured": (True, True), "n_peaks": 3},
        {"n_shifted_batches": 1},
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()),
)
def test_other_models_have_none(options):
    assert HandDerivedElbo.of(VAE(7, **DATA, n_hidden=8, n_latent=2, **options)) is None


def test_every_option_of_the_vae_has_been_thought_of():
    sizes = {"n_genes", "n_batches", "n_labels", "n_categories", "n_continuous", "n_hidden", "n_latent", "n_layers"}
    derived = {"dropout_rate", "encode_covariates", "deeply_inject_covariates"}
    # Those above with which there are no gradients by hand, and one that says more about one of them.
    left_to_the_graph = {
        "dispersion",
        "gene_likelihood",
        "latent_distribution",
        "use_observed_lib_size",
        "use_size_factor",
        "batch_representation",
        "encoder_normalisation",
        "decoder_normalisation",
        "prior",
        "n_prior_components",
        "zero_inflation",
        "zero_inflation_prior",
        "residual_rank",
        "decoder",
        "proteins_measured",
        "n_known_labels",
        "peaks_measured",
        "n_peaks",
        "n_shifted_batches",
    }
    assert set(inspect.signature(VAE).parameters) == sizes | derived | left_to_the_graph


def test_a_bound_a_frozen_parameter_and_whoever_listens_take_the_graph():
    class Own(VAE):
        pass

    def vae():
        return VAE(7, n_hidden=8, n_latent=2)

    assert HandDerivedElbo.of(vae()) is not None
    assert HandDerivedElbo.of(Own(7, n_hidden=8, n_latent=2)) is None
    assert HandDerivedElbo.of(ImportanceWeightedBound(vae(), 2)) is None
    assert HandDerivedElbo.of(SampledElbo(vae(), 1, 0.0, 9.0)) is not None
    assert HandDerivedElbo.of(SampledElbo(vae(), 2, 0.0, 9.0)) is None
    assert HandDerivedElbo.of(SampledElbo(vae(), 1, 0.1, 9.0)) is None
    assert HandDerivedElbo.of(SampledElbo(vae(), 1, 0.0, 9.0, label_weight=2.0)) is None
    listened_to, replaced = SampledElbo(vae(), 1, 0.0, 9.0), SampledElbo(vae(), 1, 0.0, 9.0)
    listened_to.register_forward_hook(lambda *arguments: None)
    replaced.objective = replaced.vae.elbo
    assert HandDerivedElbo.of(listened_to) is None
    assert HandDerivedElbo.of(replaced) is None
    frozen, of_parameter, of_layer, of_gradients = vae(), vae(), vae(), vae()
    frozen.encoder.mean.bias.requires_grad_(False)
    of_parameter.encoder.mean.bias.register_hook(lambda grad: grad * 2)
    of_layer.decoder.register_forward_hook(lambda *arguments: None)
    of_gradients.decoder.register_full_backward_hook(lambda *arguments: None)
    patched = vae()
    patched.objective = patched.elbo
    for each in (frozen, of_parameter, of_layer, of_gradients, patched):
        assert HandDerivedElbo.of(each) is None


def test_minibatches_that_take_the_graph():
    assert HandDerivedElbo.takes(make_minibatch(2))
    assert not HandDerivedElbo.takes(make_minibatch(1))
    assert not HandDerivedElbo.takes(make_minibatch(size_factor=True))
    assert not HandDerivedElbo.takes(make_minibatch(dtype=torch.float64))


def test_nothing_is_recorded(monkeypatch):
    vae, minibatch = prepared({})
    monkeypatch.setattr(vae_module.VAE, "objective", None)
    assert not HandDerivedElbo(vae).backward(minibatch, 1.0, N_TRAIN).score().requires_grad
