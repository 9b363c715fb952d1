import json

import numpy as np
import pytest
from anndata import AnnData, read_h5ad, read_zarr

from scvae_ext.data.provenance import make_actual, read_registry, read_uns, record_result, write_registry
from scvae_ext.data.registry import Registry

REGISTRY = Registry(layer=None, var_names=("a", "b"))


@pytest.fixture
def small():
    return AnnData(np.ones((3, 2), dtype=np.float32))


def test_an_anndata_that_was_never_set_up(small):
    assert read_uns(small) == {"format": 1, "setup": None, "results": {}}
    with pytest.raises(ValueError, match=r"not been set up. Call setup_anndata\(adata, ...\)"):
        read_registry(small)


def test_one_string_holds_set_up_and_results(small):
    write_registry(small, REGISTRY)
    record_result(small, 'obsm["X_scvae"]', {"seed": np.int64(3), "elbo": np.float32(-0.5), "sizes": np.arange(2)})
    assert isinstance(small.uns["scvae_ext"], str)
    content = json.loads(small.uns["scvae_ext"])
    assert content["format"] == 1
    assert content["results"] == {'obsm["X_scvae"]': {"seed": 3, "elbo": -0.5, "sizes": [0, 1]}}
    assert read_registry(small) == REGISTRY


def test_a_second_set_up_keeps_results_and_a_second_result_replaces_the_first(small):
    record_result(small, "slot", {"n": 1})
    record_result(small, "other", {"n": 2})
    write_registry(small, REGISTRY)
    record_result(small, "slot", {"n": 3})
    assert read_uns(small)["results"] == {"slot": {"n": 3}, "other": {"n": 2}}
    assert read_registry(small) == REGISTRY


def test_a_view_becomes_an_anndata_of_its_own(small):
    view = small[:2]
    record_result(view, "slot", {})
    assert not view.is_view
    assert view.shape == (2, 2)
    assert "scvae_ext" not in small.uns


def test_make_actual_leaves_others_alone(small):
    matrix = small.X
    make_actual(small)
    assert small.X is matrix


def test_view_of_a_backed_anndata_cannot_be_written_to(small, tmp_path):
    small.write_h5ad(tmp_path / "a.h5ad")
    backed = read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"view of a backed AnnData.*to_memory\(\).*copy\('FILE.h5ad'\)"):
        record_result(backed[:2], "slot", {})
    backed.file.close()


@pytest.mark.parametrize("entry", [{"elbo": float("nan")}, {"elbo": np.float32(np.inf)}])
def test_numbers_that_json_does_not_know_are_refused(small, entry):
    with pytest.raises(ValueError, match="not JSON compliant"):
        record_result(small, "slot", entry)
    assert "scvae_ext" not in small.uns


def test_objects_that_json_does_not_know_are_named(small):
    with pytest.raises(TypeError, match=r"JSON cannot hold \{1\} of type set"):
        record_result(small, "slot", {"x": {1}})


@pytest.mark.parametrize("foreign", ["{", {"a": 1}, 7])
def test_foreign_content_says_so(small, foreign):
    small.uns["scvae_ext"] = foreign
    with pytest.raises(ValueError, match=r"uns\['scvae_ext'\].*del adata.uns\['scvae_ext'\]"):
        read_uns(small)


@pytest.mark.parametrize(("text", "shown"), [('{"format": 9}', "9"), ("[]", "None")])
def test_other_format_says_so(small, text, shown):
    small.uns["scvae_ext"] = text
    with pytest.raises(ValueError, match=f"written in format {shown}, but this release of scvae_ext reads format 1"):
        read_uns(small)


# anndata announces which zarr format it will write next.
@pytest.mark.filterwarnings("ignore:(Writing )?zarr v:UserWarning")
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_round_trip(small, tmp_path, kind):
    write_registry(small, REGISTRY)
    record_result(small, "slot", {"name": "µ", "value": 0.1})
    path = tmp_path / f"a.{kind}"
    if kind == "h5ad":
        small.write_h5ad(path)
        again = read_h5ad(path)
    else:
        small.write_zarr(path)
        again = read_zarr(path)
    assert read_uns(again) == read_uns(small)
    assert read_registry(again) == REGISTRY
