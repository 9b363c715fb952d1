import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scvae_ext

ROOMS = ["analysis", "datasets", "diagnostics", "distributions", "pl"]


def test_imports_bring_nothing_heavy_and_plots_no_lightning_and_models_no_learners():
    """One process says what is loaded after each import; what an earlier one brought would show in the later ones."""
    imports = ["import scvae_ext", "import scvae_ext.distributions", "scvae_ext.SCVAE", "scvae_ext.pl"]
    script = "import json, sys\n" + "".join(f"{code}\nprint(json.dumps(list(sys.modules)))\n" for code in imports)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    of_package, of_distributions, of_models, of_plots = (set(json.loads(line)) for line in done.stdout.splitlines())
    heavy = {"lightning", "pytorch_lightning", "scanpy"}
    for modules in (of_package, of_distributions):
        assert not modules & (heavy | {"matplotlib.pyplot", "sklearn"})
    assert "matplotlib.pyplot" in of_plots
    assert not of_plots & heavy
    assert not of_models & {"scanpy", "sklearn", "scipy.stats"}


@pytest.mark.parametrize("name", scvae_ext.__all__)
def test_every_public_name_resolves_and_is_listed(name):
    assert getattr(scvae_ext, name) is not None
    assert name in dir(scvae_ext)


def test_only_what_is_public_is_listed():
    offered = {name for name in dir(scvae_ext) if not name.startswith("__")}
    assert offered == {name for name in scvae_ext.__all__ if not name.startswith("__")}


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_public_name_is_on_the_page_of_the_api(room):
    page = (Path(__file__).parents[1] / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    where = re.escape(f"scvae_ext.{room}".removesuffix("."))
    sections = re.findall(rf"currentmodule:: {where}\n(.*?)```", page, flags=re.DOTALL)
    listed = {name for section in sections for name in re.findall(r"^   (\w+)$", section, flags=re.MULTILINE)}
    # Values, types of arguments and classes of other packages stand in a sentence.
    listed |= set(re.findall(rf"`{where}\.(\w+)`", page))
    module = getattr(scvae_ext, room) if room else scvae_ext
    assert listed == {*module.__all__} - {"__version__", *ROOMS}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'scvae_ext' has no attribute 'SCVI'"):
        _ = scvae_ext.SCVI


def test_version_is_that_of_the_distribution():
    assert scvae_ext.__version__ == importlib.metadata.version("scvae-ext")
