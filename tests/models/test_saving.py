import json
import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from stores import KINDS, stored

from scvae_ext import SCVAE, Autoencoder

FILES = {"model.json", "weights.safetensors"}


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def _content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _describe(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "kind", ["nb", "zinb", "poisson", "normal", "simplex", "latent library", "size factor", "autoencoder"]
)
def test_a_loaded_model_gives_the_same_results(load, tmp_path, kind):
    model = load(kind)
    model.save(tmp_path / "again")
    again = type(model).load(tmp_path / "again", model.adata.copy())
    for getter in ("get_latent_representation", "get_normalized_expression", "get_reconstruction_error"):
        one, two = (np.asarray(getattr(each, getter)()) for each in (model, again))
        assert np.array_equal(one, two), getter
    assert again.history.equals(model.history)
    assert repr(again) == repr(model)
    assert again.train_indices.tolist() == model.train_indices.tolist()


def test_only_json_and_safetensors_are_written(folder):
    assert {file.name for file in folder.iterdir()} == FILES
    assert json.loads((folder / "model.json").read_text())["model_class"] == "SCVAE"


def test_the_anndata_comes_along_on_request(model, tmp_path):
    model.save(tmp_path / "model", save_anndata=True)
    assert {file.name for file in (tmp_path / "model").iterdir()} == FILES | {"adata.h5ad"}


def test_nothing_temporary_is_left_behind(folder):
    assert [file.name for file in folder.parent.iterdir()] == ["model"]


def test_missing_folders_are_made(model, tmp_path):
    model.save(tmp_path / "a" / "b" / "model")
    assert SCVAE.load(tmp_path / "a" / "b" / "model").is_trained


def test_a_model_is_not_overwritten_unless_told(model, folder):
    before = _content(folder)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(folder)
    assert _content(folder) == before
    model.save(folder, overwrite=True)
    assert _content(folder)["weights.safetensors"] == before["weights.safetensors"]


def test_what_else_lies_in_the_folder_stays(model, folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "figures").mkdir()
    (folder / "figures" / "model.json").write_text("mine too")
    (folder / "link").symlink_to("notes.txt")
    model.train(max_steps=1, enable_progress_bar=False)
    model.save(folder, overwrite=True)
    assert {file.name for file in folder.iterdir()} == FILES | {"notes.txt", "figures", "link"}
    assert (folder / "link").read_text() == "mine"
    assert (folder / "figures" / "model.json").read_text() == "mine too"
    assert SCVAE.load(folder).history.equals(model.history)
    assert [file.name for file in folder.parent.iterdir()] == ["model"]


def test_files_are_copied_where_they_cannot_have_two_names(model, folder, monkeypatch):
    (folder / "notes.txt").write_text("mine")
    monkeypatch.setattr("os.link", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("not supported")))
    model.save(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_saved_anndata_stays_as_long_as_it_belongs_to_the_model(model, adata, tmp_path):
    folder = tmp_path / "model"
    model.save(folder, save_anndata=True)
    model.train(max_steps=1, enable_progress_bar=False)
    model.save(folder, overwrite=True)
    assert ad.read_h5ad(folder / "adata.h5ad").obs_names.equals(adata.obs_names)
    model.adata = adata[:60].copy()
    model.save(folder, overwrite=True, save_anndata=True)
    assert ad.read_h5ad(folder / "adata.h5ad").n_obs == 60
    model.adata = adata
    model.save(folder, overwrite=True)
    assert not (folder / "adata.h5ad").exists()


def test_a_saved_anndata_stays_where_nobody_can_tell_whose_it_is(model, tmp_path):
    model.save(tmp_path / "model", save_anndata=True)
    (tmp_path / "model" / "model.json").write_text("{")
    model.save(tmp_path / "model", overwrite=True)
    assert (tmp_path / "model" / "adata.h5ad").exists()


@pytest.mark.parametrize("kind", [*KINDS, "backed view"])
def test_an_anndata_on_disk_is_saved_and_stays_as_it_is(model, adata, tmp_path, kind):
    adata.obsm["frame"] = pd.DataFrame({"a": range(120)}, index=adata.obs_names)
    adata.raw = adata[:, :5]
    expected = model.get_elbo()
    n_cells = 120
    with stored(adata, kind.removesuffix(" view"), tmp_path) as opened:
        if kind.endswith("view"):
            n_cells, opened = 70, opened[:70]
        model.adata = opened
        before = opened.filename
        model.save(tmp_path / "model", save_anndata=True)
        assert (opened.filename, opened.isbacked) == (before, kind.startswith("backed"))
        if n_cells == 120:
            assert model.get_elbo() == pytest.approx(expected, rel=1e-5)
        found = ad.read_h5ad(tmp_path / "model" / "adata.h5ad")
        counts = found.X if isinstance(found.X, np.ndarray) else found.X.toarray()
        np.testing.assert_array_equal(counts, adata.X.toarray()[:n_cells])
        assert found.obs["cell_type"].tolist() == adata.obs["cell_type"].tolist()[:n_cells]
        if not kind.startswith("zarr"):  # where stored() leaves them out
            assert found.obsm["frame"]["a"].tolist() == list(range(n_cells))
            assert found.raw.shape == (n_cells, 5)
        assert SCVAE.load(tmp_path / "model", found).get_latent_representation().shape == (n_cells, 3)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_not_a_model_is_never_overwritten(model, tmp_path, kind):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="not a saved model"):
        model.save(path, overwrite=True)
    assert (path if kind == "file" else path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_leads_to_the_new_model(model, folder, there):
    target = folder if there else folder.parent / "others" / "another"
    link = folder.parent / "link"
    link.symlink_to(target)
    model.train(max_steps=1, enable_progress_bar=False)
    model.save(link, overwrite=True)
    assert link.is_symlink()
    assert SCVAE.load(target).history.equals(model.history)
    assert {file.name for file in folder.parent.iterdir()} <= {"model", "link", "others"}


def test_a_failure_while_writing_keeps_the_model_that_was_there(model, folder, monkeypatch):
    before = _content(folder)
    monkeypatch.setattr("scvae_ext.models.saving.save_file", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save(folder, overwrite=True)
    assert _content(folder) == before
    assert [file.name for file in folder.parent.iterdir()] == ["model"]


def test_a_failure_while_renaming_keeps_the_model_that_was_there(model, folder, monkeypatch):
    before = _content(folder)
    rename, calls = os.rename, []

    def second_fails(source, target, **kwargs):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("gone")
        rename(source, target, **kwargs)

    monkeypatch.setattr("os.rename", second_fails)
    with pytest.raises(OSError, match="gone"):
        model.save(folder, overwrite=True)
    assert _content(folder) == before


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_truncated_file_says_so(folder, name, share):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{name} is truncated"):
        SCVAE.load(folder)


def test_damaged_weights_of_the_right_length_are_found(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-64] + b"\x01" * 64)
    with pytest.raises(ValueError, match="damaged"):
        SCVAE.load(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_says_so(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"not a saved model: it holds no {name}"):
        SCVAE.load(folder)


def test_a_missing_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a saved model"):
        SCVAE.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["[1, 2]", '{"a": 1}', '"text"', "null"])
def test_a_foreign_description_says_so(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(ValueError, match="not written by scvae_ext"):
        SCVAE.load(folder)


@pytest.mark.parametrize("key", ["registry", "options", "seed", "history", "split"])
def test_an_incomplete_description_says_so(folder, key):
    description = json.loads((folder / "model.json").read_text())
    del description[key]
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"model\.json"):
        SCVAE.load(folder)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("options", [{"n_hidden": 17}, {"gene_likelihood": "poisson"}, {"option_of_tomorrow": 1}])
def test_a_description_that_does_not_fit_the_weights_says_so(folder, options):
    described = json.loads((folder / "model.json").read_text())["options"]
    _describe(folder, options=described | options)
    with pytest.raises(ValueError, match=r"damaged|later release"):
        SCVAE.load(folder)


def test_a_later_format_names_the_release_that_reads_it(folder):
    _describe(folder, format=2, version="9.9")
    with pytest.raises(ValueError, match=r"format 2.*scvae-ext 9\.9"):
        SCVAE.load(folder)


def test_another_class_is_refused_by_name(folder):
    with pytest.raises(ValueError, match=r"holds a SCVAE, not a Autoencoder: load it with SCVAE\.load"):
        Autoencoder.load(folder)


def test_a_model_loads_without_its_anndata_and_is_then_handed_one(model, folder, adata):
    expected = model.get_latent_representation()
    loaded = SCVAE.load(folder)
    for needs_one in (loaded.get_latent_representation, lambda: loaded.adata):
        with pytest.raises(ValueError, match="without an AnnData: pass adata="):
            needs_one()
    assert np.array_equal(loaded.get_latent_representation(adata), expected)
    loaded.adata = adata
    assert np.array_equal(loaded.get_latent_representation(), expected)


def test_an_untrained_model_stays_untrained(adata, tmp_path):
    SCVAE(adata, n_hidden=16).save(tmp_path / "model")
    loaded = SCVAE.load(tmp_path / "model", adata)
    assert not loaded.is_trained
    with pytest.raises(RuntimeError, match=r"not been trained: call model\.train"):
        loaded.get_latent_representation()


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_can_be_saved(adata, tmp_path):
    model = SCVAE(adata, n_hidden=np.int64(16), n_latent=np.int32(2), dropout_rate=np.float32(0.1), seed=np.int64(3))
    model.save(tmp_path / "model")
    assert SCVAE.load(tmp_path / "model").seed == 3


def test_training_goes_on_after_loading(model):
    steps = model.history["step"].iloc[-1]
    model.train(max_steps=4, enable_progress_bar=False)
    assert model.history["step"].iloc[-1] == steps + 4
