"""Sphinx configuration."""

import scvae_ext

project = "scvae_ext"
author = "scvae_ext developers"
copyright = "2026, scvae_ext developers"
release = version = scvae_ext.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"scvae_ext {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]

# Tutorials are executed by .ci/run and committed with their pictures.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
templates_path = ["_templates"]
