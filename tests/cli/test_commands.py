import importlib.metadata
import subprocess
import sys

import pytest

from scvae_ext.cli import main


def test_the_console_script_is_this_function():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="scvae-ext")
    assert script.load() is main


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"scvae-ext {importlib.metadata.version('scvae-ext')}\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["fit"]])
def test_help_answers_without_loading_torch(command):
    code = f"""
import sys
from scvae_ext.cli import main
try:
    main([*{command!r}, "--help"])
finally:
    assert not {{"torch", "anndata", "scanpy", "lightning"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: scvae-ext")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "scvae-ext: error: the following arguments are required: COMMAND"),
        (["reprot"], "scvae-ext: error: argument COMMAND: invalid choice: 'reprot'"),
        (["fit", "a.h5ad"], "scvae-ext fit: error: the following arguments are required: --out"),
        (["fit", "a.h5ad", "--out", "b.h5ad", "--n-latent", "ten"], "argument --n-latent: invalid int value: 'ten'"),
        (["demo", "--colour", "x"], "scvae-ext demo: error: unrecognized arguments: --colour x (see"),
        (["fit", "a.h5ad", "--out", "b.h5ad", "--batch_key", "c"], "--batch_key c; did you mean --batch-key?"),
        (["fit", "a.h5ad", "--out", "b.h5ad", "--batchkey=c"], "--batchkey=c; did you mean --batch-key?"),
    ],
)
def test_mistakes_in_the_words_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
