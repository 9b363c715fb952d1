"""Everything that can be asked of a trained model, on one page."""

import base64
import html
import io
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from scvae_ext import pl
from scvae_ext.diagnostics._models import AnyVAE, wrong_model
from scvae_ext.diagnostics.compare_autoencoder import compare_autoencoder
from scvae_ext.diagnostics.compare_likelihoods import compare_likelihoods
from scvae_ext.diagnostics.conditional_independence import conditional_independence
from scvae_ext.diagnostics.evidence import evidence
from scvae_ext.diagnostics.gradient_estimators import gradient_estimators
from scvae_ext.diagnostics.posterior_collapse import posterior_collapse
from scvae_ext.diagnostics.posterior_predictive_check import posterior_predictive_check
from scvae_ext.diagnostics.zero_inflation import zero_inflation
from scvae_ext.models import SCVAE
from scvae_ext.models.set_up import set_up_as

__all__ = ["report"]

MAX_ROWS = 25
PAGE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class _Section:
    """A question, how it is asked, and how the answer is drawn."""

    name: str
    title: str
    question: str
    ask: Callable[[AnyVAE, int], Any]
    draw: Callable[[Any], Sequence[Axes]]
    trains: bool = False


def _compare_likelihoods(model: AnyVAE, seed: int) -> Any:
    if not isinstance(model, SCVAE):
        raise wrong_model(model, "compare_likelihoods", "a likelihood")
    model._require_whole_data()
    own = ("gene_likelihood", "zero_inflation", "zero_inflation_prior")
    others = {name: value for name, value in model._options.items() if name not in own}
    with set_up_as(model.adata, model.registry) as adata:
        return compare_likelihoods(adata, model_options=others, enable_progress_bar=False, seed=seed)


def _compare_autoencoder(model: AnyVAE, seed: int) -> Any:
    if not isinstance(model, SCVAE):
        raise wrong_model(model, "compare_autoencoder", "a likelihood")
    model._require_whole_data()
    with set_up_as(model.adata, model.registry) as adata:
        return compare_autoencoder(adata, model_options=model._options, enable_progress_bar=False, seed=seed)


SECTIONS = (
    _Section(
        "evidence",
        "Evidence",
        "How well does the model predict cells that it has not seen, and how far is the ELBO from that?",
        lambda model, seed: evidence(model, seed=seed),
        pl.evidence,
    ),
    _Section(
        "posterior_collapse",
        "Posterior collapse",
        "Which latent dimensions are used, and how much do they say about a cell?",
        lambda model, seed: posterior_collapse(model, seed=seed),
        pl.posterior_collapse,
    ),
    _Section(
        "posterior_predictive_check",
        "Posterior predictive check",
        "Do data that the model makes look like those that it was trained on?",
        lambda model, seed: posterior_predictive_check(model, seed=seed),
        pl.posterior_predictive_check,
    ),
    _Section(
        "zero_inflation",
        "Zero inflation",
        "Which genes have more zeros than a negative binomial gives, and can that be known?",
        lambda model, seed: zero_inflation(model, seed=seed),
        pl.zero_inflation,
    ),
    _Section(
        "conditional_independence",
        "Conditional independence",
        "Are genes independent, given where a cell lies in the latent space?",
        lambda model, seed: conditional_independence(model, seed=seed),
        pl.conditional_independence,
    ),
    _Section(
        "gradient_estimators",
        "Gradient estimators",
        "How noisy is the gradient that the model was trained by, and would another estimator be better?",
        lambda model, seed: gradient_estimators(model, seed=seed),
        pl.gradient_estimators,
    ),
    _Section(
        "compare_likelihoods",
        "Which likelihood?",
        "Which distribution of counts do the data support?",
        _compare_likelihoods,
        pl.compare_likelihoods,
        trains=True,
    ),
    _Section(
        "compare_autoencoder",
        "Deterministic or probabilistic?",
        "What does the model do better than an autoencoder with the same networks, and what worse?",
        _compare_autoencoder,
        pl.compare_autoencoder,
        trains=True,
    ),
)


def report(
    model: AnyVAE,
    path: str | os.PathLike[str],
    *,
    sections: Sequence[str] | None = None,
    title: str = "Can this model be believed?",
    overwrite: bool = False,
    seed: int = 0,
    tell: Callable[[str], object] | None = None,
) -> Path:
    """Ask a trained model every question of ``diagnostics``, and write the answers on one self-contained HTML page.

    Each section has its question, the answer in a sentence or two, a picture, and the head of its table. Nothing is
    loaded from elsewhere: the page can be sent to somebody. A question that cannot be asked of this model, or of so few
    cells, is listed with the reason.

    Parameters
    ----------
    model
        A trained model with its AnnData.
    path
        File to write, ``.html``.
    sections
        Names of the functions of ``diagnostics`` to include; all that need no further training by default. Add
        ``"compare_likelihoods"``, which trains models with each likelihood, or ``"compare_autoencoder"``, which trains
        the model again beside an autoencoder.
    title
        Heading of the page.
    overwrite
        Whether the file may exist.
    seed
        Seed of everything random.
    tell
        Called with a line for each section as it is begun, as the questions take a minute together: ``print``, for
        example.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    FileExistsError
        If the file exists and may not be replaced.
    RuntimeError
        If the model is not trained, or has no AnnData.
    ValueError
        If a section is not known, or the file is not ``.html``.
    """
    path = Path(path)
    known = {section.name: section for section in SECTIONS}
    chosen = [section.name for section in SECTIONS if not section.trains] if sections is None else list(sections)
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"sections={unknown[0]!r} is not known: use some of {list(known)}.")
    if path.suffix != ".html":
        raise ValueError(f"path={str(path)!r} must end in .html.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or pass overwrite=True.")
    if not model.is_trained:
        raise RuntimeError("The model has not been trained: call model.train() first, or load one.")
    if model.history.empty:
        raise RuntimeError("The model was mapped onto its reference and not trained since: call model.train() first.")
    n_cells = model.adata.n_obs
    answers = []
    for number, name in enumerate(chosen, start=1):
        if tell is not None:
            tell(f"{number} of {len(chosen)}: {known[name].title}")
        answers.append(_answer(known[name], model, seed))
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        facts=_facts(model, n_cells),
        overview="\n".join(answer.overview for answer in answers),
        training=_picture(pl.history(model.history), "ELBO of training and held-out cells by step"),
        sections="\n".join(answer.body for answer in answers),
    )
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.html")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class _Answer:
    overview: str
    body: str


def _answer(section: _Section, model: AnyVAE, seed: int) -> _Answer:
    """Ask one question; what the function has to say about the model or the data is part of the answer."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            result = section.ask(model, seed)
        except (TypeError, ValueError) as error:
            result, reason = None, str(error)
    remarks = list(dict.fromkeys(str(note.message) for note in notes if issubclass(note.category, UserWarning)))
    if result is None:
        summary, picture, table = f"Not asked of this model: {reason}", "", ""
    else:
        summary = result.summary()
        picture = _picture(section.draw(result), section.question)
        table = _table(result.to_frame())
    first = summary.splitlines()[0]
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in summary.splitlines() if line.strip())
    paragraphs += "".join(f'<p class="remark">{html.escape(remark)}</p>' for remark in remarks)
    return _Answer(
        f'<li><a href="#{section.name}">{html.escape(section.title)}</a>: {html.escape(first)}</li>',
        f'<section id="{section.name}"><h2>{html.escape(section.title)}</h2>'
        f'<p class="question">{html.escape(section.question)}</p>{paragraphs}{picture}{table}</section>',
    )


def _facts(model: AnyVAE, n_cells: int) -> str:
    """Describe data, model and training as rows of a table."""
    from scvae_ext import __version__

    registry = model.registry
    last = model.history.iloc[-1]
    facts = {
        "Data": f"{n_cells:,} cells, {registry.n_genes:,} genes, {registry.n_batches} "
        + ("batch" if registry.n_batches == 1 else "batches"),
        "Model": repr(model),
        "Training": f"{int(last['step']):,} updates, {int(last['epoch']):,} epochs, {last['seconds']:.0f} s",
        "Package": f"scvae_ext {__version__}",
    }
    return "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())


def _picture(axes: Axes | Sequence[Axes], description: str) -> str:
    """Embed the figure that some axes belong to, and close it."""
    figure = (axes if isinstance(axes, Axes) else axes[0]).get_figure(root=True)
    assert figure is not None
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    plt.close(figure)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    # The style sheet keeps pictures legible on a phone by what they measure on paper.
    return (
        f'<figure><img alt="{html.escape(description)}" style="--inches: {figure.get_figwidth():g}" '
        f'src="data:image/png;base64,{data}"></figure>'
    )


def _table(frame: pd.DataFrame) -> str:
    """Show the head of a table, folded away."""
    shown = frame.head(MAX_ROWS)
    more = f", the first {MAX_ROWS} of {len(frame):,} rows" if len(frame) > MAX_ROWS else ""
    body = shown.to_html(border=0, float_format=lambda value: f"{value:.4g}")
    return f"<details><summary>Table{more}</summary><div>{body}</div></details>"
