"""``python -m scvae_ext``: the command line, where ``scvae-ext`` is not on the path."""

from scvae_ext.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
