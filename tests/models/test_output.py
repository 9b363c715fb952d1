import errno
import json
import os
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr
from stores import KINDS, stored

from scvae_ext.data.readers import SparseFileRows

FORMATS = ["h5ad", "zarr"]


def read(path):
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


@pytest.fixture(params=FORMATS)
def out(request, tmp_path):
    return tmp_path / "results" / f"out.{request.param}"


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr("scvae_ext.models.pieces._MOST_CELLS", 50)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", ["nb", "autoencoder"])
def test_latent_representation(load, adata, out, kind):
    model = load(kind)
    assert model.get_latent_representation(out=out) == out
    assert model.latent_key not in adata.obsm
    found = read(out)
    assert found.obs_names.equals(adata.obs_names)
    assert found.obs["cell_type"].tolist() == adata.obs["cell_type"].tolist()
    values = found.obsm[model.latent_key]
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, model.get_latent_representation(), atol=1e-6)
    record = json.loads(found.uns["scvae_ext"])["results"][f'obsm["{model.latent_key}"]']
    assert (record["model"], record["arguments"]["n_cells"]) == (type(model).__name__, 120)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", ["nb", "autoencoder"])
def test_normalized_expression_of_some_cells_and_genes(load, adata, out, kind):
    model = load(kind)
    cells, genes = [100, 4, 7, 55], ["gene_7", "gene_2"]
    options = {"indices": cells, "gene_list": genes}
    assert model.get_normalized_expression(out=out, **options) == out
    found = read(out)
    assert found.obs_names.tolist() == adata.obs_names[cells].tolist()
    assert found.var_names.tolist() == genes
    expected = model.get_normalized_expression(return_numpy=True, **options)
    np.testing.assert_allclose(found.X, expected, rtol=1e-4, atol=1e-7)
    assert json.loads(found.uns["scvae_ext"])["results"]["X"]["arguments"]["gene_list"] == genes


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", ["backed", "lazy zarr"])
def test_from_disk_to_disk(model, adata, out, tmp_path, kind):
    expected = model.get_normalized_expression(return_numpy=True, key_added=None)
    with stored(adata, kind, tmp_path) as opened:
        if kind == "lazy zarr":
            opened.X = opened.X.rechunk((40, 30))
        model.get_normalized_expression(opened, out=out)
    np.testing.assert_allclose(read(out).X, expected, rtol=1e-4, atol=1e-7)


def test_x_of_a_backed_result_stays_on_disk(model, tmp_path):
    model.get_normalized_expression(out=tmp_path / "out.h5ad")
    found = ad.read_h5ad(tmp_path / "out.h5ad", backed="r")
    assert isinstance(found.X, h5py.Dataset)
    found.file.close()


def test_what_is_there_is_replaced_only_on_request(model, out):
    model.get_latent_representation(out=out, indices=[0, 1])
    with pytest.raises(FileExistsError, match=r"exists already: pass overwrite=True"):
        model.get_latent_representation(out=out)
    assert read(out).n_obs == 2
    model.get_latent_representation(out=out, overwrite=True)
    assert read(out).n_obs == 120
    assert os.listdir(out.parent) == [out.name]


def test_a_folder_of_the_user_is_never_replaced(model, out):
    out.mkdir(parents=True)
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="is a folder and no zarr store, so it is not replaced"):
        model.get_latent_representation(out=out, overwrite=True)
    (out / "thesis.tex").unlink()
    # There is nothing to lose in an empty one.
    model.get_latent_representation(out=out, overwrite=True)
    assert read(out).n_obs == 120


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stores_of_either_format_are_replaced(model, tmp_path, zarr_format):
    zarr.open_group(tmp_path / "out.zarr", mode="w", zarr_format=zarr_format).create_group("obs")
    model.get_latent_representation(out=tmp_path / "out.zarr", overwrite=True)
    assert read(tmp_path / "out.zarr").n_obs == 120


def test_a_link_stays_one(model, out):
    link = out.with_name(f"link{out.suffix}")
    for there in (False, True):
        out.parent.mkdir(exist_ok=True)
        if not there:
            link.symlink_to(out.name)
        assert model.get_latent_representation(out=link, overwrite=True) == link
        assert link.is_symlink()
        assert read(out).n_obs == 120
    assert sorted(os.listdir(out.parent)) == sorted([link.name, out.name])


@pytest.mark.parametrize("after", ["out", "new"])
def test_an_interrupt_while_renaming_loses_no_file(model, out, monkeypatch, after):
    model.get_latent_representation(out=out, indices=[0, 1])
    rename = Path.rename

    def interrupted(self, target):
        renamed = rename(self, target)
        if self.stem == after:
            monkeypatch.setattr(Path, "rename", rename)
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.get_latent_representation(out=out, overwrite=True)
    assert os.listdir(out.parent) == [out.name]
    assert read(out).n_obs == (2 if after == "out" else 120)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [slice(None), slice(70)])
def test_the_file_that_is_read_is_never_replaced(model, adata, tmp_path, kind, part):
    with stored(adata, kind, tmp_path) as opened:
        path = next(tmp_path.iterdir())
        link = tmp_path / f"link{path.suffix}"
        link.symlink_to(path)
        for out in (path, tmp_path / "." / path.name, link):
            with pytest.raises(ValueError, match="is the file that the counts are read from"):
                model.get_latent_representation(opened[part], out=out, overwrite=True)
        if part == slice(None):
            # Nothing was lost, and other files are replaced as before.
            for _ in range(2):
                model.get_latent_representation(opened, out=tmp_path / "out.h5ad", overwrite=True)
    assert read(path).shape == adata.shape


def test_neither_is_one_of_several_in_a_store_nor_all_of_it(model, adata, tmp_path):
    (tmp_path / "all.zarr").mkdir()
    with stored(adata, "zarr", tmp_path / "all.zarr"):
        group = zarr.open_group(tmp_path / "all.zarr", mode="a", zarr_format=2)["stored.zarr"]
        opened = ad.AnnData(ad.io.sparse_dataset(group["X"]), obs=adata.obs, var=adata.var)
        for out in (tmp_path / "all.zarr", tmp_path / "all.zarr" / "stored.zarr"):
            with pytest.raises(ValueError, match="is the file that the counts are read from"):
                model.get_latent_representation(opened, out=out, overwrite=True)
        for _ in range(2):
            model.get_latent_representation(opened, out=tmp_path / "all.zarr" / "latent.zarr", overwrite=True)


def test_nothing_is_replaced_where_it_cannot_be_told_what_is_read(model, adata, tmp_path):
    array = pytest.importorskip("dask.array", reason="Dask is in the extra 'scale'")
    lazy = ad.AnnData(array.from_array(adata.X.toarray(), chunks=(40, 30)), obs=adata.obs, var=adata.var)
    out = tmp_path / "out.h5ad"
    model.get_latent_representation(lazy, out=out)
    with pytest.raises(FileExistsError, match=r"it cannot be told whether the counts.*remove it first"):
        model.get_latent_representation(lazy, out=out, overwrite=True)
    assert read(out).n_obs == 120


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "latent.csv"}, r"out='latent.csv' must end in .h5ad or .zarr"),
        ({"out": "o.zarr", "give_mean": False}, "out=... takes the posterior mean alone"),
        ({"out": "o.zarr", "return_dist": True}, "out=... takes the posterior mean alone"),
        ({"out": "o.zarr", "indices": [3, 3]}, "asked for more than once"),
    ],
)
def test_what_cannot_be_written(model, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        model.get_latent_representation(**options)
    assert os.listdir(tmp_path) == []


def test_samples_of_expression_are_not_written(model, tmp_path):
    with pytest.raises(ValueError, match="leave out return_mean=False"):
        model.get_normalized_expression(return_mean=False, out=tmp_path / "o.zarr")


class FullDisk:
    """Takes the place of a dataset on a disk that has room for one piece."""

    def __init__(self):
        self.n_written = 0

    def __setitem__(self, place, values):
        if self.n_written:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.n_written += 1


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_is_full(model, out, monkeypatch, existing):
    if existing:
        model.get_latent_representation(out=out, indices=[0, 1])
    for name in ("_create_h5ad", "_create_zarr"):
        create = getattr(__import__("scvae_ext.models.output", fromlist=[name]), name)

        def fill_up(*arguments, create=create):
            _, close = create(*arguments)
            return FullDisk(), close

        monkeypatch.setattr(f"scvae_ext.models.output.{name}", fill_up)
    left = "what was there before is as it was" if existing else "nothing is left of it"
    with pytest.raises(OSError, match=rf"out\.\w+ could not be written, and {left}: .*No space") as raised:
        model.get_latent_representation(out=out, overwrite=True)
    assert raised.value.errno == errno.ENOSPC
    # What was there before is still there, and nothing half-written beside it.
    assert os.listdir(out.parent) == [out.name] * existing
    if existing:
        assert read(out).n_obs == 2


@pytest.mark.usefixtures("small_pieces")
def test_counts_that_cannot_be_read_are_not_blamed_on_the_result(model, adata, out, tmp_path, monkeypatch):
    def fail(self, spans):
        raise OSError("adata.X, rows 0 to 49, could not be read")

    with stored(adata, "backed", tmp_path) as opened:
        source_is_aligned = model.get_latent_representation(opened, indices=[0], key_added=None)
        assert source_is_aligned.shape == (1, 3)
        model.adata = opened
        monkeypatch.setattr(SparseFileRows, "read", fail)
        with pytest.raises(OSError, match=r"^adata.X, rows 0 to 49, could not be read$"):
            model.get_latent_representation(out=out)
    assert os.listdir(out.parent) == []


def test_what_anndata_does_not_write_is_not_blamed_on_the_disk(model, adata, out, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("`anndata.settings.allow_write_nullable_strings` is False")

    monkeypatch.setattr("scvae_ext.models.output.write_elem", refuse)
    with pytest.raises(RuntimeError, match=r"^`anndata\.settings"):
        model.get_latent_representation(out=out)
    assert os.listdir(out.parent) == []


@pytest.mark.usefixtures("small_pieces")
def test_values_that_are_not_finite_are_not_written(model, out, monkeypatch):
    from scvae_ext.models import inference

    latent_mean = inference.latent_mean

    def spoiled(module, cells, n_samples, seed):
        latent = latent_mean(module, cells, n_samples, seed)
        latent[cells.positions == 77] = np.nan
        return latent

    monkeypatch.setattr(inference, "latent_mean", spoiled)
    with pytest.raises(ValueError, match=r'obsm\["X_scvae"\] of 1 cells is not finite, cell \'cell_77\' for example'):
        model.get_latent_representation(out=out)
    assert os.listdir(out.parent) == []
