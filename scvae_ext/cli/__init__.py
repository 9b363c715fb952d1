"""The command line: ``scvae-ext demo`` and ``scvae-ext fit``."""

from scvae_ext.cli.commands import main

__all__ = ["main"]
