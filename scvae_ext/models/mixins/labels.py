"""Which label a cell has."""

import pandas as pd
from anndata import AnnData

from scvae_ext.analysis import LabelCalibration
from scvae_ext.models.cells import evaluating
from scvae_ext.models.label_inference import label_probabilities
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.options import true_or_false, whole_number
from scvae_ext.models.query import CellSelection

__all__ = ["LabelMixin"]


class LabelMixin(VAEModel):
    """Which label a cell has."""

    _calibration: LabelCalibration = LabelCalibration()

    @property
    def label_calibration(self) -> LabelCalibration:
        """By how much :meth:`predict` makes probabilities less sure than the model is."""
        return self._calibration

    @property
    def label_names(self) -> list[str]:
        """Names of the labels that the model knows, in the order of results."""
        return list(self.registry.label_categories[:-1])

    def predict(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        soft: bool = False,
        batch_size: int | None = None,
        *,
        n_samples: int = 50,
        calibrated: bool = True,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_label",
        write_subset: bool = False,
    ) -> pd.Series | pd.DataFrame:
        r"""Return the label of each cell by its counts, or the probabilities of all labels.

        .. math:: p(y \mid x) \approx \mathbb E_{q(z \mid x)}\left[
                  \frac{p(y)\,p(z \mid y)}{\sum_{y'} p(y')\,p(z \mid y')}\right]

        A label that the AnnData already has plays no part: of a cell that was trained on with its label, this is what
        its counts alone say. Noise is shared between cells as for :meth:`get_normalized_expression`, so that the
        result is deterministic.

        The model is then made less sure, by as much as it was found to be too sure of labels that were held out, before
        it learned from them (:attr:`label_calibration`). Probabilities are among the known labels: a cell of a type
        that none of them names gets the one that is nearest; :meth:`get_novelty` asks whether there is one.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`; an AnnData without the column of labels will do.
        soft
            Whether to return probabilities rather than labels.
        n_samples, seed
            Samples of the posterior, and their seed.
        calibrated
            Whether to make the model less sure. The most probable label is the same.
        key_added
            Key of ``adata.obs``, other than that of the known labels, or of ``adata.obsm`` with ``soft=True``;
            ``None`` writes nothing.

        Returns
        -------
        pandas.Series or pandas.DataFrame
            The most probable label, categorical, also in ``adata.obs[key_added]``, and its probability in
            ``adata.obs[f"{key_added}_probability"]``; with ``soft=True`` probabilities of cells by labels, float32,
            also in ``adata.obsm[key_added]``.

        Raises
        ------
        RuntimeError, ValueError
            As for :meth:`get_latent_representation`, and if predictions would take the place of the known labels.
        """
        if not true_or_false("soft", soft) and key_added == self.registry.labels_key:
            raise ValueError(
                f"key_added={key_added!r} is the column of the labels that are known: predictions there would be taken "
                "for known ones. Name another column."
            )
        if soft:
            self._require_free("obsm", key_added)
        else:
            self._require_free("obs", key_added, "", "_probability")
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        n_samples, seed = whole_number("n_samples", n_samples), whole_number("seed", seed, least=0)
        with evaluating(self.module):
            probabilities = label_probabilities(self.module, cells, n_samples, seed)
        if true_or_false("calibrated", calibrated):
            probabilities = self._calibration.apply(probabilities)
        arguments = {"n_samples": n_samples, "seed": seed, "calibrated": calibrated}
        names, index = self.label_names, cells.source.obs_names[cells.positions]
        if soft:
            self._write(adata, "obsm", key_added, probabilities, cells, write_subset, arguments, names)
            return pd.DataFrame(probabilities, index=index, columns=names)
        codes = probabilities.argmax(axis=1)
        if key_added is not None:
            self._write(adata, "obs", key_added, codes, cells, write_subset, arguments, categories=names)
            self._write(
                adata, "obs", f"{key_added}_probability", probabilities.max(axis=1), cells, write_subset, arguments
            )
        return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index(names)), index=index, name=key_added)
