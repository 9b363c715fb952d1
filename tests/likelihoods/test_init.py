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
