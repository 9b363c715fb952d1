import warnings
from argparse import Namespace

import pytest

from scvae_ext.cli.words import in_options, warnings_in_one_line

OPTIONS = Namespace(
    command="fit",
    file="a.h5ad",
    layer=None,
    seed=0,
    n_latent=None,
    batch_key=None,
    protein_key=None,
    continuous_covariate_keys=None,
    drop_missing_genes=False,
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Nothing is there. To use adata.X, pass layer=None.", "Nothing is there. To use adata.X, pass no --layer."),
        ("layer: adata.layers['counts'] was not found.", "--layer: adata.layers['counts'] was not found."),
        ("protein_expression_obsm_key: there is none.", "--protein-key: there is none."),
        ("Add them, or pass drop_missing_genes=True to go on.", "Add them, or pass --drop-missing-genes to go on."),
        ("n_latent=0 must be a whole number.", "--n-latent 0 must be a whole number."),
        ("n_latent=2.5 must be one.", "--n-latent 2.5 must be one."),
        ("Pass the layer as layer=...; there are none.", "Pass the layer as --layer ...; there are none."),
        ("If not, pass it in continuous_covariate_keys.", "If not, pass it in --continuous-covariate-keys."),
    ],
)
def test_arguments_are_called_by_their_options(message, expected):
    assert in_options(message, OPTIONS) == expected


@pytest.mark.parametrize(
    "message",
    [
        "The seed of a layer is in a file.",
        "adata.obs['batch_key'] is empty, and so is obs[batch_key].",
        "/data/batch_key/model and batch_key.h5ad are there.",
        "labels_key is no option of this command, nor is model=None.",
        "--batch-key names a column.",
    ],
)
def test_other_words_stay(message):
    assert in_options(message, OPTIONS) == message


def test_commands_of_few_options():
    message = "Cells of batch_key, seed=1."
    assert in_options(message, Namespace(command="demo", seed=0)) == "Cells of batch_key, --seed 1."
    assert in_options(message, Namespace(command="demo")) == message


def test_warnings_are_lines_without_a_place(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning
        with warnings_in_one_line(OPTIONS):
            warnings.warn("of two\n  lines; see batch_key", stacklevel=1)
        assert capsys.readouterr() == ("", "warning: of two lines; see --batch-key\n")
        assert warnings.showwarning is shown
