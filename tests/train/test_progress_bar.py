import sys
from types import SimpleNamespace

import pytest

from scvae_ext.train import progress_bar
from scvae_ext.train.progress_bar import open_bar


class _Handle:
    def __init__(self, shown):
        self.shown = shown

    def update(self, content, raw):
        assert raw
        self.shown[-1].append(content["text/plain"])


@pytest.fixture
def shown(monkeypatch):
    """Make this process look like the kernel of a notebook; return a list of what each output of it has held."""
    shown = []

    def display(content, raw, display_id):
        assert raw
        assert display_id
        shown.append([content["text/plain"]])
        return _Handle(shown)

    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return shown


def _train(n_steps=50, total=50):
    bar = open_bar(total)
    for _ in range(n_steps):
        bar.update()
    bar.set_postfix({"held-out ELBO": "-12"}, refresh=False)
    bar.close()


def test_a_notebook_gets_one_output_that_is_updated(shown, capsys):
    _train()
    _train(20)
    assert len(shown) == 2
    assert shown[0][0].startswith("Training:   0%")
    assert "50/50" in shown[0][-1]
    assert "held-out ELBO=-12" in shown[0][-1]
    # Training that ends early stays where it was.
    assert "20/50" in shown[1][-1]
    assert not any("\n" in line or "\r" in line for lines in shown for line in lines)
    assert capsys.readouterr() == ("", "")


def test_a_notebook_is_not_flooded(shown):
    _train(5000, 5000)
    # The first, the last, and one a second.
    assert len(shown[0]) <= 4


def test_a_process_of_the_kernel_prints_its_line(shown, capsys, monkeypatch):
    monkeypatch.setattr(progress_bar, "parent_process", lambda: object())
    _train()
    assert shown == []
    assert "50/50" in capsys.readouterr().err


def test_a_shell_without_a_kernel_is_no_notebook(shown, capsys, monkeypatch):
    # The terminal of IPython, where somebody has imported ipykernel.
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    _train()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    _train()
    assert shown == []
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_nothing_and_a_terminal_a_line(capsys, monkeypatch):
    _train()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    _train()
    assert "50/50" in capsys.readouterr().err
