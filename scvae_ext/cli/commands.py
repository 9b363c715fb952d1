"""The commands and their options; what they do loads when they run, so that ``--help`` answers at once."""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import scvae_ext
from scvae_ext.cli.files import UserError
from scvae_ext.cli.words import warnings_in_one_line

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Shows mistakes as one line, without the usage, and names the option that is nearest to one it does not know."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse what is left, as the command that it was given to."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            asked = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
            near = get_close_matches(asked.replace("_", "-"), known, n=1, cutoff=0.75)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        Words after the name of the program; those of the process by default.

    Returns
    -------
    int
        Exit status: 0, or 2 after a mistake of the user.
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings_in_one_line(options):
            if options.command == "demo":
                from scvae_ext.cli.demo import demo

                demo(options.out, seed=options.seed)
            elif options.command == "report":
                from scvae_ext.cli.report import report

                report(options)
            elif options.command == "map":
                from scvae_ext.cli.mapping import map_cells

                map_cells(options)
            else:
                from scvae_ext.cli.fit import fit

                fit(options)
    except UserError as error:
        print(f"scvae-ext {options.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="scvae-ext", description="Variational autoencoders for single-cell counts.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {scvae_ext.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train on 700 PBMCs that come with scanpy; needs no network")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="folder for scvae-ext-demo.h5ad and scvae-ext-demo.png, which are replaced (%(default)s)",
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")

    fit = commands.add_parser("fit", help="train on the counts in an .h5ad file")
    fit.add_argument("file", type=Path, metavar="FILE.h5ad")
    fit.add_argument("--out", type=Path, required=True, metavar="OUT.h5ad", help="file to write the results to")
    fit.add_argument("--overwrite", action="store_true", help="replace existing output files")
    data = fit.add_argument_group("data")
    data.add_argument("--layer", help="layer that holds the counts (X by default)")
    data.add_argument("--batch-key", metavar="KEY", help="column of obs with the experimental batch")
    data.add_argument("--labels-key", metavar="KEY", help="column of obs with known groups of cells")
    data.add_argument(
        "--protein-key", metavar="KEY", help="key of obsm with raw counts of surface proteins, to model with the genes"
    )
    data.add_argument(
        "--accessibility-key", metavar="KEY", help="key of obsm with accessible peaks, to model with the genes"
    )
    data.add_argument("--peak-names-key", metavar="KEY", help="key of uns with the names of the peaks")
    data.add_argument("--size-factor-key", metavar="KEY", help="column of obs with size factors")
    data.add_argument("--categorical-covariate-keys", nargs="+", metavar="KEY", help="further columns of obs")
    data.add_argument("--continuous-covariate-keys", nargs="+", metavar="KEY", help="numeric columns of obs")
    model = fit.add_argument_group("model and training")
    model.add_argument("--gene-likelihood", default="nb", help="nb, zinb, poisson or normal (%(default)s)")
    model.add_argument(
        "--n-latent", type=int, help="dimensions of the latent space (10 by default, 20 with proteins or peaks)"
    )
    model.add_argument(
        "--predict-labels",
        action="store_true",
        help="learn from the cells that have a label in --labels-key, and predict those of all cells",
    )
    model.add_argument(
        "--unlabeled-category",
        default="Unknown",
        metavar="NAME",
        help="value in --labels-key of cells without a label, beside missing values (%(default)s)",
    )
    model.add_argument("--max-epochs", type=int, help="passes over the cells (chosen from the data by default)")
    model.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    results = fit.add_argument_group("results")
    results.add_argument(
        "--normalized-expression",
        action="store_true",
        help="also write denoised expression, which is dense: cells x genes x 4 bytes",
    )
    results.add_argument("--save-model", type=Path, metavar="DIR", help="also save the trained model to a folder")
    results.add_argument("--figure", type=Path, metavar="PNG", help="also draw a UMAP of the latent space")
    results.add_argument(
        "--color", nargs="+", metavar="KEY", help="columns of obs or genes for the figure (labels and batch by default)"
    )

    mapped = commands.add_parser("map", help="map cells of new batches onto a saved model")
    mapped.add_argument("model", type=Path, metavar="MODEL", help="folder of the saved model")
    mapped.add_argument("file", type=Path, metavar="FILE.h5ad", help="counts of the new cells")
    mapped.add_argument("--out", type=Path, required=True, metavar="OUT.h5ad", help="file to write the results to")
    mapped.add_argument("--overwrite", action="store_true", help="replace existing output files")
    mapped.add_argument(
        "--drop-missing-genes", action="store_true", help="go on without genes of the model that FILE.h5ad lacks"
    )
    mapped.add_argument("--max-epochs", type=int, help="passes over the cells (chosen from the data by default)")
    mapped.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    mapped.add_argument(
        "--reference",
        type=Path,
        metavar="FILE.h5ad",
        help="counts of the cells of the model, to compare new cells with",
    )
    mapped.add_argument(
        "--labels-key", metavar="KEY", help="column of obs in --reference with labels, to take over from neighbours"
    )
    mapped.add_argument("--normalized-expression", action="store_true", help="also write denoised expression")
    mapped.add_argument("--save-model", type=Path, metavar="DIR", help="also save the model of the new cells")

    report = commands.add_parser("report", help="ask a trained model whether it can be believed; one HTML page")
    report.add_argument(
        "model", type=Path, nargs="?", metavar="MODEL", help="folder of a saved model (trains on the demo data without)"
    )
    report.add_argument("data", type=Path, nargs="?", metavar="FILE.h5ad", help="the counts that it was trained on")
    report.add_argument(
        "--out", type=Path, default=Path("scvae-ext-report.html"), metavar="HTML", help="file to write (%(default)s)"
    )
    report.add_argument("--overwrite", action="store_true", help="replace an existing file")
    report.add_argument(
        "--compare-likelihoods", action="store_true", help="also train a model for each likelihood and compare them"
    )
    report.add_argument(
        "--compare-autoencoder", action="store_true", help="also train the model again beside an autoencoder"
    )
    report.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    return parser
