"""The autoencoder beside the VAE: what a probabilistic model gains, and what it costs."""

from collections.abc import Mapping
from typing import Any

from anndata import AnnData

from scvae_ext.diagnostics._autoencoder_questions import choose_cells, judge
from scvae_ext.diagnostics._models import others_than
from scvae_ext.diagnostics.autoencoder_comparison import AutoencoderComparison
from scvae_ext.likelihoods import COUNT_LIKELIHOODS
from scvae_ext.models import SCVAE, Autoencoder
from scvae_ext.models.options import whole_number

__all__ = ["compare_autoencoder"]

LEAST_CELLS = 50
OWN_OPTIONS = ("adata", "seed")
SHARED_OPTIONS = ("n_hidden", "n_latent", "n_layers", "dropout_rate")


def compare_autoencoder(
    adata: AnnData,
    *,
    model_options: Mapping[str, Any] | None = None,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    train_size: float = 0.7,
    validation_size: float = 0.1,
    batch_size: int = 128,
    accelerator: str = "auto",
    enable_progress_bar: bool = True,
    n_cells: int = 1000,
    n_samples: int = 50,
    seed: int = 0,
) -> AutoencoderComparison:
    r"""Train a VAE and a deterministic autoencoder in the same way, and ask the same of both.

    Both have the same networks, see the same training cells for as many steps, choose their weights on the same
    validation cells, and are judged on the rest, by what a probabilistic model is said to be good for:

    * **Reconstruction** (``training_error``, ``held_out_error``). Mean squared error of log-normalised values
      :math:`y = \log(1 + 10^4 x / \ell)`, the autoencoder's own objective. The VAE's prediction is the expectation
      of y among counts that it draws for the cell, less what the variance of this mean over draws adds to the error.
    * **Held-out prediction** (``half_deviance``, ``half_correlation``). Each molecule of a held-out cell goes to one
      of two halves by the toss of a coin. Models encode the first half and predict shares :math:`p_g` of the second:
      Poisson deviance :math:`2 \sum_g x_g \log\{x_g / (\ell p_g)\}`, and the correlation over genes of predicted and
      observed :math:`\log(1 + 10^4 p)`, less the mean over cells. All predictions are mixed with 1% of the mean cell,
      lest a predicted zero where a molecule was seen decides all. The reference is the mean cell itself.
    * **Smoothness** (``detour``, ``largest_step``, ``gap``). Points are decoded at 20 equal steps along the straight
      line between the latent points of two held-out cells, each cell in one pair. With :math:`v_t` the log-normalised
      expected expression,
      :math:`\sum_t |v_{t+1} - v_t| / |v_{20} - v_0|` (1: straight),
      :math:`20 \max_t |v_{t+1} - v_t| / \sum_t |v_{t+1} - v_t|` (1: even, 20: a jump), and
      :math:`\max_t \min_n |v_t - v_n| / |v_{20} - v_0|` with the decoded training cells n (0: cells all along the
      way, 0.5: none between the two ends of a straight one).
    * **Generation** (``generated_auc``, ``generated_auc_normal``). The VAE decodes :math:`z \sim p(z)` and draws from
      its likelihood. The autoencoder has neither: its z come from a Gaussian fitted to its codes of training cells,
      or from N(0, I), and its counts have Poisson noise. Library sizes and covariates are those of held-out
      cells, from which a classifier has to tell the generated ones: the cross-validated area under the ROC curve, by
      20 principal components, the distance from them, and the number of genes detected. The reference is the same
      for training cells in place of generated ones.
    * **Uncertainty** (``coverage``). Central predictive intervals of the VAE for the second half of the counts of the
      50 most abundant genes, by the randomised probability integral transform. The autoencoder has none.

    A model is called better in a measure where the difference is beyond two standard errors. These cover the choice of
    cells, not the chance of training. Both models see half of the molecules in cells of half the size that they were
    trained on; halves of an overdispersed count are not quite independent given z, which favours neither. The
    measures of smoothness live in what each model itself decodes: a model that decodes every cell alike has no lines.

    Parameters
    ----------
    adata
        AnnData that :meth:`~scvae_ext.SCVAE.setup_anndata` was called on. It is not changed.
    model_options
        Options of :class:`~scvae_ext.SCVAE`, of which ``n_hidden``, ``n_latent``, ``n_layers`` and ``dropout_rate``
        go to both models.
    max_epochs, max_steps, batch_size, accelerator, enable_progress_bar
        As for :meth:`~scvae_ext.SCVAE.train`.
    train_size, validation_size
        Shares of the cells to train on and to choose the best weights by; the models are compared on the others, which
        must be 50 cells at least.
    n_cells
        Held-out cells to compare on at most, and as many training cells; at least 50.
    n_samples
        Draws of each cell.
    seed
        Seed of the split, of weights, of training and of all draws.

    Returns
    -------
    AutoencoderComparison
        Its ``verdict`` is a sentence.

    Raises
    ------
    ValueError
        If too few cells are left to compare on, there are fewer than three genes, the likelihood is not one of
        counts, or an option is not valid.
    TypeError
        If an option of the models is unknown.

    Warns
    -----
    UserWarning
        If a model decodes held-out cells alike, so that there are no lines between them; the result has no measures
        of smoothness then.

    Notes
    -----
    Sources: Kingma and Welling, ICLR 2014 (the VAE); Batson, Royer and Webber, bioRxiv 786269 (2019) (one half of the
    molecules from the other); Lopez-Paz and Oquab, ICLR 2017 (the classifier); Czado, Gneiting and Held, Biometrics
    65, 1254 (2009) (calibration of counts).

    See Also
    --------
    scvae_ext.pl.compare_autoencoder : Draw the result.
    """
    options = others_than(OWN_OPTIONS, model_options, "compare_autoencoder")
    likelihood = options.get("gene_likelihood", "nb")
    if likelihood == "normal":
        raise ValueError(
            "model_options asks for gene_likelihood='normal', but the comparison needs counts: use one of "
            f"{', '.join(map(repr, COUNT_LIKELIHOODS))}."
        )
    n_cells = whole_number("n_cells", n_cells, least=LEAST_CELLS)
    n_samples = whole_number("n_samples", n_samples, least=2)
    seed = whole_number("seed", seed, least=0)
    # Both models are built before either is trained, so that a mistake costs no time.
    vae = SCVAE(adata, seed=seed, **options)
    autoencoder = Autoencoder(
        adata, seed=seed, **{name: value for name, value in options.items() if name in SHARED_OPTIONS}
    )
    if vae.registry.n_genes < 3:
        raise ValueError(f"adata has {vae.registry.n_genes} genes: at least 3 are needed to compare expression.")
    n_left = adata.n_obs - round(adata.n_obs * train_size) - round(adata.n_obs * validation_size)
    if min(n_left, round(adata.n_obs * train_size) // 2) < LEAST_CELLS:
        raise ValueError(
            f"train_size={train_size!r} and validation_size={validation_size!r} leave {max(n_left, 0)} of "
            f"{adata.n_obs} cells to compare on: at least {LEAST_CELLS} are needed, and twice as many to train on."
        )
    for model in (vae, autoencoder):
        model.train(
            max_epochs,
            accelerator,
            train_size=train_size,
            validation_size=validation_size,
            batch_size=batch_size,
            max_steps=max_steps,
            seed=seed,
            enable_progress_bar=enable_progress_bar,
        )
        model._require_whole_training()
    return judge(vae, autoencoder, choose_cells(vae, n_cells, seed), n_samples, seed)
