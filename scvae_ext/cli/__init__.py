"""The command line: ``scvae-ext demo``, ``fit``, ``map`` and ``report``."""

from scvae_ext.cli.commands import main

__all__ = ["main"]
