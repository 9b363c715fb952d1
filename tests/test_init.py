import importlib.metadata
import json
import subprocess
import sys

import pytest

import scvae_ext


def _modules_after(code: str) -> set[str]:
    script = f"import json, sys\n{code}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("code", ["import scvae_ext", "import scvae_ext.distributions"])
def test_import_brings_nothing_heavy(code):
    assert not _modules_after(code) & {"lightning", "pytorch_lightning", "scanpy", "matplotlib.pyplot", "sklearn"}


def test_plots_do_not_need_lightning():
    assert not _modules_after("import scvae_ext as sv; sv.pl") & {"lightning", "pytorch_lightning", "scanpy"}


@pytest.mark.parametrize("name", scvae_ext.__all__)
def test_every_public_name_resolves_and_is_listed(name):
    assert getattr(scvae_ext, name) is not None
    assert name in dir(scvae_ext)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'scvae_ext' has no attribute 'SCVI'"):
        _ = scvae_ext.SCVI


def test_version_is_that_of_the_distribution():
    assert scvae_ext.__version__ == importlib.metadata.version("scvae-ext")
