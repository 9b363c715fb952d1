import base64
import importlib
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from scvae_ext import SCVAE, CiteVAE, diagnostics
from scvae_ext.datasets import synthetic_counts


class Page(HTMLParser):
    """The tags of a page, and the text outside of its style."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert diagnostics.report(trained(), path, sections=["evidence", "posterior_collapse"], title="A < B & C") == path
    return Page(path.read_text(encoding="utf-8"))


def test_every_tag_is_closed_and_every_section_linked(page):
    assert page.open == []
    assert [attrs["id"] for attrs in page.all("section")] == ["training", "evidence", "posterior_collapse"]
    assert [attrs["href"] for attrs in page.all("a")] == ["#evidence", "#posterior_collapse"]


def test_nothing_is_loaded_from_elsewhere(page):
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.all("img"))


def test_pictures_are_pictures_with_a_description(page):
    pictures = page.all("img")
    assert len(pictures) == 3
    for attrs in pictures:
        picture = Image.open(io.BytesIO(base64.b64decode(attrs["src"].split(",")[1])))
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert attrs["alt"]


def test_text_is_escaped_and_figures_are_those_of_the_functions(page, trained):
    assert "A < B & C" in page.text
    evidence = diagnostics.evidence(trained())
    assert evidence.summary().splitlines()[0] in page.text
    assert f"{trained().history['step'].iloc[-1]:,} updates" in page.text


def test_what_cannot_be_asked_is_listed_with_the_reason(trained, tmp_path):
    path = tmp_path / "report.html"
    diagnostics.report(trained(gene_likelihood="poisson"), path, sections=["zero_inflation", "posterior_collapse"])
    text = Page(path.read_text(encoding="utf-8")).text
    assert re.search(r"Zero inflation: Not asked of this model: .*nb", text)
    assert "Posterior collapse: " in text


def test_each_section_is_told_as_it_is_begun(trained, tmp_path):
    told = []
    sections = ["posterior_collapse", "zero_inflation"]
    model = trained(gene_likelihood="poisson")
    diagnostics.report(model, tmp_path / "report.html", sections=sections, tell=told.append)
    assert told == ["1 of 2: Posterior collapse", "2 of 2: Zero inflation"]


def test_models_are_trained_on_cells_that_were_not_set_up(trained, counts, tmp_path, monkeypatch):
    """As a loaded model takes them."""
    model = trained()
    model.save(tmp_path / "model")
    bare = counts.copy()
    del bare.uns["scvae_ext"]
    asked = []

    def compare(adata, **options):
        asked.append(SCVAE(adata, **options["model_options"]).registry)
        raise ValueError("enough")

    module = importlib.import_module("scvae_ext.diagnostics.report")
    monkeypatch.setattr(module, "compare_likelihoods", compare)
    monkeypatch.setattr(module, "compare_autoencoder", compare)
    sections = ["compare_likelihoods", "compare_autoencoder"]
    diagnostics.report(SCVAE.load(tmp_path / "model", bare), tmp_path / "report.html", sections=sections)
    assert asked == [model.registry, model.registry]


def test_models_of_more_than_counts_are_asked_what_they_can_be(tmp_path):
    adata = synthetic_counts(n_cells=120, n_genes=20, n_proteins=3)
    CiteVAE.setup_anndata(adata, protein_expression_obsm_key="protein")
    model = CiteVAE(adata)
    model.train(max_epochs=1, enable_progress_bar=False)
    sections = ["posterior_collapse", "gradient_estimators", "compare_likelihoods", "compare_autoencoder"]
    diagnostics.report(model, tmp_path / "report.html", sections=sections)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "120 cells, 20 genes" in text
    assert len(re.findall(r"Not asked of this model: \w+ asks about counts of genes alone", text)) == 6
    assert "Posterior collapse: Not asked" not in text


def test_mistakes(trained, counts, tmp_path):
    path = tmp_path / "report.html"
    with pytest.raises(ValueError, match="sections='evidenz' is not known: use some of"):
        diagnostics.report(trained(), path, sections=["evidenz"])
    with pytest.raises(ValueError, match=r"must end in \.html"):
        diagnostics.report(trained(), tmp_path / "report.pdf")
    with pytest.raises(RuntimeError, match="has not been trained"):
        diagnostics.report(SCVAE(counts), path)
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        diagnostics.report(trained(), path, sections=["evidence"])
    assert path.read_text() == "precious"
    diagnostics.report(trained(), path, sections=["posterior_collapse"], overwrite=True)
    assert "Posterior collapse" in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
