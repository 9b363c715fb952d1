import pytest

from scvae_ext.likelihoods import (
    COUNT_LIKELIHOODS,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
    make_likelihood,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nb", NegativeBinomialLikelihood),
        ("zinb", ZeroInflatedNegativeBinomialLikelihood),
        ("poisson", PoissonLikelihood),
        ("normal", NormalLikelihood),
    ],
)
def test_names_of_likelihoods(name, expected):
    assert type(make_likelihood(name, 3, 5)) is expected


def test_likelihoods_of_counts():
    assert set(COUNT_LIKELIHOODS) == {"nb", "zinb", "poisson"}


@pytest.mark.usefixtures("unchecked")
def test_unknown_likelihood_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"gene_likelihood='negbin'.*'nb', 'zinb', 'poisson', 'normal'"):
        make_likelihood("negbin", 3, 5)


@pytest.mark.usefixtures("unchecked")
def test_unknown_dispersion_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"dispersion='cell'.*'gene', 'gene-batch', 'gene-label', 'gene-cell'"):
        make_likelihood("nb", 3, 5, dispersion="cell")


@pytest.mark.parametrize("dispersion", ["gene-batch", "gene-label", "gene-cell"])
def test_poisson_has_no_dispersion(dispersion):
    with pytest.raises(ValueError, match=f"{dispersion}.*'poisson'"):
        make_likelihood("poisson", 3, 5, dispersion=dispersion, n_batches=2, n_labels=2)


def test_dispersion_by_label_needs_labels():
    with pytest.raises(ValueError, match="labels_key"):
        make_likelihood("nb", 3, 5, dispersion="gene-label")


def test_zero_inflation_reaches_the_likelihood():
    likelihood = make_likelihood("zinb", 3, 5, zero_inflation="logistic", zero_inflation_prior=[1.0, 9.0])
    assert likelihood.zero_inflation.kind == "logistic"
    assert likelihood.zero_inflation.prior == [1.0, 9.0]


@pytest.mark.parametrize("name", ["nb", "poisson", "normal"])
@pytest.mark.parametrize("options", [{"zero_inflation": "gene"}, {"zero_inflation_prior": [1.0, 9.0]}])
def test_zero_inflation_needs_a_likelihood_that_has_it(name, options):
    with pytest.raises(ValueError, match=f'{next(iter(options))}=.*{name!r}.*gene_likelihood="zinb"'):
        make_likelihood(name, 3, 5, **options)


@pytest.mark.usefixtures("unchecked")
def test_unknown_zero_inflation_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"zero_inflation='cell'.*'gene-cell', 'gene', 'logistic'"):
        make_likelihood("zinb", 3, 5, zero_inflation="cell")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("prior", [(0.5, 9.0), (1.0,), (1.0, float("inf")), (1.0, float("nan")), 3.0, "ab", (True, 2)])
def test_a_prior_without_a_maximum_is_refused(prior):
    with pytest.raises(ValueError, match=r"zero_inflation_prior=.*two numbers of at least 1"):
        make_likelihood("zinb", 3, 5, zero_inflation_prior=prior)
