import os

import pytest

from scvae_ext.cli.files import UserError, check_writable, replacing


def test_a_new_file_in_an_existing_folder_is_fine(tmp_path):
    check_writable(tmp_path / "new.h5ad", overwrite=False)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_needs_permission(tmp_path):
    path = tmp_path / "old.h5ad"
    path.touch()
    with pytest.raises(UserError, match=r"old\.h5ad exists; add --overwrite"):
        check_writable(path, overwrite=False)
    check_writable(path, overwrite=True)


def test_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        check_writable(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="does not exist; make it first"):
        check_writable(tmp_path / "missing" / "file.h5ad", overwrite=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser can write everywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written to"):
        check_writable(tmp_path / "file.h5ad", overwrite=True)


def test_a_file_appears_complete_under_its_name(tmp_path):
    path = tmp_path / "result.png"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".png"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.h5ad"
    path.write_text("old")

    def fail_midway():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_midway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
