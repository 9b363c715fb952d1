"""What is trained where a reference is kept: new batches, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from minibatches import make_minibatch
from torch.distributions import Normal

from scvae_ext.minibatch import SparseCounts
from scvae_ext.modules import VAE, KeptReference, copy_reference, start_new_batches, trainable_bound
from scvae_ext.peaks import AccessiblePeaks

N_KNOWN, N_NEW, N_GENES, N_HIDDEN = 2, 2, 7, 16
NEW = [2, 3]
SIZES = {"n_hidden": N_HIDDEN, "n_latent": 3, "encode_covariates": True}
KINDS = {
    "nb": {},
    "gene-batch": {"dispersion": "gene-batch"},
    "zinb": {"gene_likelihood": "zinb", "zero_inflation_prior": (1.0, 9.0)},
    "linear": {"decoder": "linear"},
    "vamp": {"prior": "vamp", "n_prior_components": 4},
    "latent library": {"use_observed_lib_size": False},
    "embedding": {"batch_representation": "embedding"},
    "normal": {"gene_likelihood": "normal"},
    "proteins": {"proteins_measured": [[True] * 3] * 3 + [[True, False, True]]},
    "peaks": {"peaks_measured": [True] * 4, "n_peaks": 9},
}
# Of each trained parameter, the axis and the places that belong to the two new batches.
LAYER = ("encoder.mlp.layers.0.covariates.weight", 1, [2, 3]), ("decoder.layers.0.covariates.weight", 1, [2, 3])
SHIFTS = {"likelihood.expression_head.linear.weight": (1, [N_HIDDEN, N_HIDDEN + 1])}
TRAINED = {
    "nb": SHIFTS,
    "gene-batch": SHIFTS | {"likelihood.dispersion.log_value": (0, [2, 3])},
    "zinb": {"likelihood.base.expression_head.linear.weight": (1, [N_HIDDEN, N_HIDDEN + 1])},
    "linear": {"likelihood.expression_head.linear.weight": (1, [3 + 2, 3 + 3])},
    "vamp": SHIFTS,
    "latent library": SHIFTS | {"library_encoder.mlp.layers.0.covariates.weight": (1, [2, 3])},
    "embedding": SHIFTS | {"covariates.embedding.weight": (0, [2, 3])},
    "normal": {"likelihood.location.linear.weight": (1, [N_HIDDEN, N_HIDDEN + 1])},
    "proteins": SHIFTS | {"proteins.likelihood.log_background": (0, [2, 3])},
    "peaks": SHIFTS | {"accessibility.likelihood.log_rate.weight": (1, [N_HIDDEN, N_HIDDEN + 1])},
}


def cells(n_cells=40, **options):
    """Draw cells with counts of proteins and accessible peaks."""
    minibatch = make_minibatch(n_cells, N_GENES, n_batches=N_KNOWN + N_NEW, **options)
    rng = np.random.default_rng(options.get("seed", 0))
    accessible = sp.csr_matrix((rng.random((n_cells, 9)) < 0.5).astype(np.float32))
    proteins = torch.from_numpy(rng.poisson(4.0, (n_cells, 3)).astype(np.float32))
    return replace(minibatch, proteins=proteins, peaks=AccessiblePeaks.from_csr(accessible))


def start(vae, minibatches, groups=None, n_groups=1):
    """Start the new batches."""
    if groups is None:
        groups = [torch.zeros(each.n_cells, dtype=torch.int64) for each in minibatches]
    start_new_batches(vae, zip(minibatches, groups, strict=True), NEW, N_KNOWN, n_groups)


def extended(kind="nb"):
    torch.manual_seed(0)
    options = SIZES | KINDS[kind]
    measured = {name: options[name][:N_KNOWN] for name in ("proteins_measured", "peaks_measured") if name in options}
    reference = VAE(N_GENES, **(options | measured), n_batches=N_KNOWN).eval()
    larger = VAE(N_GENES, **options, n_batches=N_KNOWN + N_NEW, n_shifted_batches=N_NEW).eval()
    copy_reference(reference, larger, torch.arange(N_GENES))
    return larger


def trained_places(kind):
    layers = {name: (axis, places) for name, axis, places in LAYER}
    if kind == "embedding":
        layers = {}
    elif kind == "linear":
        del layers["decoder.layers.0.covariates.weight"]
    return layers | TRAINED[kind]


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_but_new_batches_stays_bit_for_bit(kind, bound):
    vae = extended(kind)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    view = KeptReference(trainable_bound(vae, bound, 2 if bound == "iwae" else 1, 0.0), vae, NEW, N_KNOWN)
    optimizer = torch.optim.AdamW([value for value in view.parameters() if value.requires_grad], 0.1, weight_decay=0.0)
    for seed in range(5):
        view.train()
        optimizer.zero_grad()
        objective = view.objective(cells(seed=seed))
        (-objective.score().mean() - view.log_prior() / 40).backward()
        view.keep_fixed()
        optimizer.step()
    places = trained_places(kind)
    for name, value in vae.state_dict().items():
        moved = value != before[name]
        expected = torch.zeros_like(moved)
        if name in places:
            axis, positions = places[name]
            expected.index_fill_(axis, torch.tensor(positions), True)
        if kind == "normal" and name == "decoder.layers.0.covariates.weight":
            assert not moved[~expected].any()  # not all units of so small a decoder pass anything on
            continue
        unmoved_units = expected & ~moved
        assert not (moved & ~expected).any(), name
        assert unmoved_units.sum() <= 0.3 * expected.sum(), name


def test_a_first_step_follows_the_gradient_of_the_objective():
    vae = extended()
    minibatch = make_minibatch(40, N_GENES, n_batches=4)
    view = KeptReference(vae, vae, NEW, N_KNOWN)
    weight = vae.mean_head.linear.weight
    with torch.no_grad():
        weight[:, N_HIDDEN + 1] = 0.2

    def loss(shift):
        with torch.no_grad():
            weight[2, N_HIDDEN + 1] = shift
        score = view.objective(minibatch, torch.Generator().manual_seed(3)).score().mean()
        return -score - view.log_prior() / 40

    loss(0.2).backward()
    view.keep_fixed()
    with torch.no_grad():
        numeric = (loss(0.2 + 1e-2) - loss(0.2 - 1e-2)) / 2e-2
    torch.testing.assert_close(weight.grad[2, N_HIDDEN + 1], numeric, rtol=1e-2, atol=1e-4)
    assert not weight.grad[:, :N_HIDDEN].any()


@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_where_new_cells_lie_costs_nothing(penalty):
    vae, minibatch = extended(), make_minibatch(40, N_GENES, n_batches=4)
    bound = trainable_bound(vae, "elbo", 1, 0.0, penalty)
    view = KeptReference(bound, vae, NEW, N_KNOWN)
    found, plain = (each.objective(minibatch, torch.Generator().manual_seed(3)) for each in (view, bound))
    qz = vae.encode(minibatch).qz
    # The divergence from a Gaussian that lies where the posterior does.
    free = torch.distributions.kl_divergence(qz, Normal(qz.loc, torch.ones_like(qz.loc))).sum(-1)
    torch.testing.assert_close(found.score(0.7) - found.score(0.0), -0.7 * free, rtol=1e-4, atol=1e-3)
    assert view.monitor == "free_location_elbo"
    torch.testing.assert_close(found.terms()[view.monitor], found.score())
    torch.testing.assert_close(found.terms()["elbo"], plain.terms()["elbo"])


@pytest.mark.parametrize(
    ("kind", "bound"), [("vamp", ("elbo", 1, 0.0)), ("nb", ("iwae", 2, 0.0)), ("nb", ("elbo", 1, 0.5))]
)
def test_other_priors_and_bounds_are_as_they_are(kind, bound):
    vae = extended(kind)
    plain = trainable_bound(vae, *bound)
    view = KeptReference(plain, vae, NEW, N_KNOWN)
    assert view.monitor == plain.monitor
    scores = [each.objective(cells(), torch.Generator().manual_seed(3)).score() for each in (view, plain)]
    torch.testing.assert_close(*scores)


def test_the_prior_on_shifts_is_gaussian():
    vae = extended()
    with torch.no_grad():
        vae.mean_head.linear.weight[:, N_HIDDEN:] = torch.randn(N_GENES, 2)
        vae.likelihood.dispersion.log_value.normal_()
    view = KeptReference(vae, vae, NEW, N_KNOWN)
    assert vae.log_prior() < -1
    shifts = vae.mean_head.linear.weight[:, N_HIDDEN:]
    prior = Normal(0.0, 0.5)
    at_zero = prior.log_prob(torch.zeros(())) * shifts.numel()
    others = vae.log_prior()
    torch.testing.assert_close(view.log_prior() - others, prior.log_prob(shifts).sum() - at_zero)


def test_the_prior_on_columns_of_layers_lies_at_the_mean_of_known_batches():
    vae = extended()
    view = KeptReference(vae, vae, [3], N_KNOWN)
    # Copied from the reference they are that mean.
    torch.testing.assert_close(view.log_prior(), vae.log_prior())
    for layer in (vae.encoder.mlp.layers[0], vae.decoder.layers[0]):
        with torch.no_grad():
            layer.covariates.weight[5, 3] += 0.3
            layer.covariates.weight[5, 2] += 9.0  # another batch
    torch.testing.assert_close(view.log_prior(), vae.log_prior() - 2 * 0.5 * (0.3 / 0.2) ** 2)


def test_what_was_learned_of_other_new_batches_does_not_move_the_prior_on_columns():
    vae = extended()
    layers = vae.encoder.mlp.layers[0], vae.decoder.layers[0]
    expected = vae.log_prior()
    for layer in layers:
        weight = layer.covariates.weight.detach()
        weight[:, 2] += 1.0
        expected = expected - 0.5 * ((weight[:, 3] - weight[:, :2].mean(1)) / 0.2).square().sum()
    torch.testing.assert_close(KeptReference(vae, vae, [3], N_KNOWN).log_prior(), expected)


def test_the_prior_on_columns_of_a_linear_decoder_lies_at_the_mean_of_known_batches():
    vae = extended("linear")
    weight = vae.mean_head.linear.weight
    with torch.no_grad():
        weight[:, 3:5] = torch.randn(N_GENES, 2)
        weight[:, 5:] = weight[:, 3:5].mean(1, keepdim=True)
    view = KeptReference(vae, vae, NEW, N_KNOWN)
    torch.testing.assert_close(view.log_prior(), vae.log_prior())
    with torch.no_grad():
        weight[0, 5] += 1.0
    torch.testing.assert_close(view.log_prior(), vae.log_prior() - 0.5 / 0.5**2)
    # Another new batch, whatever was learned of it, is none of those.
    last = KeptReference(vae, vae, [3], N_KNOWN)
    torch.testing.assert_close(last.log_prior(), vae.log_prior())


def test_the_mode_of_training_does_not_reach_the_reference():
    vae = extended()
    view = KeptReference(vae, vae, NEW, N_KNOWN)
    for mode in (True, False, True):
        view.train(mode)
        assert view.training is mode
        assert not any(module.training for module in vae.modules())


def test_what_was_fixed_can_be_trained_again_and_what_a_user_had_fixed_cannot():
    vae = extended()
    vae.encoder.mean.bias.requires_grad_(False)
    view = KeptReference(vae, vae, NEW, N_KNOWN)
    assert not vae.encoder.mean.weight.requires_grad
    view.release()
    fixed = [name for name, value in vae.named_parameters() if not value.requires_grad]
    assert fixed == ["encoder.mean.bias"]


def test_its_state_is_that_of_the_vae():
    vae = extended()
    view = KeptReference(vae, vae, NEW, N_KNOWN)
    assert set(view.state_dict()) == {f"bound.{name}" for name in vae.state_dict()}


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["nonlinear", "linear"])
def test_shifts_start_at_the_ratio_of_observed_and_expected_counts(decoder):
    torch.manual_seed(0)
    vae = VAE(N_GENES, **SIZES, decoder=decoder, n_batches=4, n_shifted_batches=2).eval()
    # A decoder that expects the same of all cells, whatever their state.
    rates = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0, 1.5, 0.1])
    head = vae.mean_head.linear
    head.weight.zero_()
    head.bias.copy_((rates / rates.sum()).log())
    head.weight[:, -1] = 7.0  # what an earlier start has left
    minibatches = [make_minibatch(30, N_GENES, n_batches=4, seed=seed, rate=1.0) for seed in range(2)]
    start(vae, minibatches)
    for column, batch in ((-2, 2), (-1, 3)):
        observed, expected = np.zeros(N_GENES), np.zeros(N_GENES)
        for minibatch in minibatches:
            of_batch = (minibatch.batch == batch).numpy()
            counts = minibatch.counts.dense().numpy()[of_batch]
            observed += counts.sum(0)
            expected += counts.sum() * rates.numpy() / rates.numpy().sum()
        np.testing.assert_allclose(
            head.weight[:, column], np.log((observed + 4) / (expected + 4)), rtol=1e-4, atol=1e-5
        )
    others = head.weight[:, :-2]
    assert not others.any()


@torch.no_grad()
def test_shifts_of_log_normalised_values_start_at_zero():
    vae = extended("normal")
    minibatch = make_minibatch(30, N_GENES, n_batches=4)
    start(vae, [minibatch])
    assert not vae.mean_head.linear.weight[:, N_HIDDEN:].any()


@torch.no_grad()
def test_the_background_of_measured_proteins_starts_at_the_ratio_as_well():
    vae = extended("proteins")
    likelihood = vae.proteins.likelihood
    for head in (likelihood.background, likelihood.ratio, likelihood.mixing):
        head.weight.zero_()
    likelihood.log_background[:2] = torch.tensor([[0.1, 0.5, -0.3], [0.3, 0.1, 0.1]])
    likelihood.log_background[2:] = likelihood.log_background[:2].mean(0)
    before = likelihood.log_background.clone()
    minibatches = [cells(seed=seed) for seed in range(2)]
    start(vae, minibatches)
    torch.testing.assert_close(likelihood.log_background[:2], before[:2])
    share, ratio = likelihood.mixing.bias.sigmoid(), torch.nn.functional.softplus(likelihood.ratio.bias)
    mean = before[2].exp() * (share + (1 - share) * ratio.exp())
    for batch in (2, 3):
        counts = torch.cat([each.proteins[each.batch == batch] for each in minibatches])
        expected = ((counts.sum(0) + 4) / (len(counts) * mean + 4)).log()
        if batch == 3:
            expected[1] = 0  # it was not measured there
        torch.testing.assert_close(likelihood.log_background[batch], before[batch] + expected)


@torch.no_grad()
def test_peaks_start_where_as_many_cells_are_expected_to_have_them_as_do():
    vae = extended("peaks")
    likelihood = vae.accessibility.likelihood
    likelihood.log_rate.weight.zero_()
    likelihood.log_rate.bias.copy_(torch.linspace(-3, 1, 9))
    minibatches = [cells(seed=seed) for seed in range(2)]
    ones = [torch.zeros(40, 9) for _ in minibatches]
    for dense, each in zip(ones, minibatches, strict=True):
        cell = torch.repeat_interleave(torch.arange(40), each.peaks.offsets.diff())
        dense[cell, each.peaks.peak_index.long()] = 1
    # Cells of one depth have one probability each.
    vae.accessibility.depth = lambda minibatch: torch.ones(minibatch.n_cells)
    start(vae, minibatches)
    for column, batch in ((-2, 2), (-1, 3)):
        found = torch.cat([dense[each.batch == batch] for dense, each in zip(ones, minibatches, strict=True)])
        share = -torch.expm1(-likelihood.log_rate.bias.exp())
        wanted = share * (found.sum(0) + 4) / (len(found) * share + 4)
        rate = (likelihood.log_rate.bias + likelihood.log_rate.weight[:, column]).exp()
        torch.testing.assert_close(-torch.expm1(-rate), wanted.clamp_max(1 - 0.5 / len(found)))


def test_new_batches_without_cells_are_left_alone():
    vae = extended()
    with torch.no_grad():
        vae.mean_head.linear.weight[:, N_HIDDEN:] = 0.3
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    view = KeptReference(vae, vae, [3], N_KNOWN)
    optimizer = torch.optim.AdamW([value for value in view.parameters() if value.requires_grad], 0.1, weight_decay=0.0)
    minibatch = cells()
    minibatch = replace(minibatch, batch=torch.full_like(minibatch.batch, 3))
    for _ in range(3):
        optimizer.zero_grad()
        (-view.objective(minibatch).score().mean() - view.log_prior()).backward()
        view.keep_fixed()
        optimizer.step()
    changed = {
        name: (value != before[name]).nonzero()[:, 1].unique().tolist()
        for name, value in vae.state_dict().items()
        if value.dim() == 2
    }
    assert {name: columns for name, columns in changed.items() if columns} == {
        "encoder.mlp.layers.0.covariates.weight": [3],
        "decoder.layers.0.covariates.weight": [3],
        "likelihood.expression_head.linear.weight": [N_HIDDEN + 1],
    }


@torch.no_grad()
def test_with_groups_shifts_start_at_what_most_cells_have():
    torch.manual_seed(0)
    vae = VAE(N_GENES, **SIZES, n_batches=4, n_shifted_batches=2).eval()
    shares = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])
    vae.mean_head.linear.weight.zero_()
    vae.mean_head.linear.bias.copy_(shares.log())
    factor = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 1.0, 1.0])
    # In a third of the cells one gene has twenty times as many counts, and no other gene fewer.
    group = torch.arange(300) % 3
    mean = 2000 * shares * factor * torch.ones(300, 1)
    mean[group == 2, 4] *= 20
    counts = torch.poisson(mean, generator=torch.Generator().manual_seed(0))
    minibatch = make_minibatch(300, N_GENES, n_batches=4)
    # Depth is that of the other genes, so that their expected counts are those of all groups.
    minibatch = replace(
        minibatch,
        counts=SparseCounts.from_dense(counts),
        library_size=torch.full((300,), 2000.0),
        batch=torch.full((300,), 3),
    )
    start(vae, [minibatch], [group], 3)
    robust = vae.mean_head.linear.weight[:, -1].clone()
    np.testing.assert_allclose(robust, factor.log(), atol=0.05)
    start(vae, [minibatch])
    assert vae.mean_head.linear.weight[4, -1] > 1.5


@torch.no_grad()
def test_with_groups_shifts_of_rare_genes_are_shrunk_as_their_prior_says():
    """The weighted median of the groups' log ratios, by the share of expected counts in these and the prior's four."""
    torch.manual_seed(0)
    vae = VAE(N_GENES, **SIZES, n_batches=4, n_shifted_batches=2).eval()
    shares = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.1, 0.06, 0.04])
    vae.mean_head.linear.weight.zero_()
    vae.mean_head.linear.bias.copy_(shares.log())
    group = torch.arange(12) % 4 % 3  # twice as many cells of the first
    depth = torch.linspace(5, 60, 12)
    counts = torch.poisson(depth.unsqueeze(1) * shares, generator=torch.Generator().manual_seed(1))
    minibatch = replace(
        make_minibatch(12, N_GENES, n_batches=4),
        counts=SparseCounts.from_dense(counts),
        library_size=depth,
        batch=torch.full((12,), 2),
    )
    start(vae, [minibatch], [group], 3)
    members = torch.nn.functional.one_hot(group, 3).T.float()
    observed, expected = (members @ counts).numpy(), (members @ (depth.unsqueeze(1) * shares)).numpy()
    ratio = np.log((observed + 1) / (expected + 1))
    for gene in range(N_GENES):
        order = np.argsort(ratio[:, gene])
        reached = np.cumsum(expected[order, gene]) >= expected[:, gene].sum() / 2
        median, total = ratio[order[np.argmax(reached)], gene], expected[:, gene].sum()
        found = float(vae.mean_head.linear.weight[gene, N_HIDDEN])
        assert found == pytest.approx(median * total / (total + 1 / 0.5**2), abs=1e-5)


@torch.no_grad()
def test_backgrounds_of_proteins_start_from_the_reference_whatever_they_were():
    started = []
    for before in (0.0, 5.0):
        vae = extended("proteins")
        background = vae.proteins.likelihood.log_background
        background[:N_KNOWN] = torch.tensor([[1.0, 2.0, 0.5], [2.0, 1.0, 0.5]])
        background[N_KNOWN:] = before
        start(vae, [cells()])
        started.append(background.clone())
    torch.testing.assert_close(*started)
    assert (started[0][:N_KNOWN] == torch.tensor([[1.0, 2.0, 0.5], [2.0, 1.0, 0.5]])).all()
