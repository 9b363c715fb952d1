"""What a model knows of its data: genes, categories and covariates, by name."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from scvae_ext.data.fields import Layer
from scvae_ext.data.peaks import PeakSet
from scvae_ext.data.proteins import ProteinPanel
from scvae_ext.data.validation import Entry, require_counts

__all__ = ["FORMAT", "CategoricalCovariate", "ContinuousCovariate", "Registry"]

FORMAT = 1
"""Version of the JSON layout that this release writes."""


@dataclass(frozen=True)
class CategoricalCovariate:
    """A categorical covariate.

    Parameters
    ----------
    key
        Column of ``adata.obs``.
    categories
        Names of its categories.
    """

    key: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class ContinuousCovariate:
    """A continuous covariate, standardised as ``(value - mean) / std``.

    Parameters
    ----------
    key
        Column of ``adata.obs``.
    mean, std
        Mean and standard deviation over the cells that were set up, in the column's units.
    """

    key: str
    mean: float
    std: float


@dataclass(frozen=True)
class Registry:
    """The fields of a data set by name, as ``setup_anndata`` found them.

    Parameters
    ----------
    layer
        Key in ``adata.layers`` of the counts, ``None`` for ``adata.X``.
    var_names
        Names of the genes, in the order in which a model sees them.
    batch_key, batch_categories
        Column of experimental batches, and their names; ``None`` and empty if not registered.
    labels_key, label_categories
        Column of cell labels, and their names; ``None`` and empty if not registered.
    size_factor_key
        Column of size factors, ``None`` if not registered.
    categorical_covariates, continuous_covariates
        The further covariates.
    first_fraction
        The first entry of the matrix that is not a whole number, ``None`` if all are counts.
    proteins
        Proteins that were counted beside the genes, ``None`` if not registered.
    peaks
        Peaks of chromatin that were measured beside the genes, ``None`` if not registered.
    unlabeled_category
        The last of ``label_categories`` where it means that the label is not known, ``None`` if all are known.
    """

    layer: str | None
    var_names: tuple[str, ...]
    batch_key: str | None = None
    batch_categories: tuple[str, ...] = ()
    labels_key: str | None = None
    label_categories: tuple[str, ...] = ()
    size_factor_key: str | None = None
    categorical_covariates: tuple[CategoricalCovariate, ...] = ()
    continuous_covariates: tuple[ContinuousCovariate, ...] = ()
    first_fraction: Entry | None = None
    proteins: ProteinPanel | None = None
    peaks: PeakSet | None = None
    unlabeled_category: str | None = None

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.var_names)

    @property
    def n_batches(self) -> int:
        """Number of batches; one if none are registered."""
        return max(1, len(self.batch_categories))

    @property
    def n_labels(self) -> int:
        """Number of labels; one if none are registered."""
        return max(1, len(self.label_categories))

    @property
    def n_categories_per_covariate(self) -> tuple[int, ...]:
        """Number of categories of each categorical covariate."""
        return tuple(len(covariate.categories) for covariate in self.categorical_covariates)

    @property
    def n_continuous_covariates(self) -> int:
        """Number of continuous covariates."""
        return len(self.continuous_covariates)

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of the canonical JSON."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def keys_read(self, slot: str) -> tuple[str, ...]:
        """Return the keys that values are read from.

        Parameters
        ----------
        slot
            Slot of the AnnData: ``"layers"``, ``"obs"``, ``"obsm"`` or ``"uns"``; nothing is read from others.
        """
        features = [each for each in (self.proteins, self.peaks) if each is not None]
        covariates = [each.key for each in self.categorical_covariates]
        covariates += [each.key for each in self.continuous_covariates]
        keys: dict[str, list[str | None]] = {
            "layers": [self.layer],
            "obs": [self.batch_key, self.labels_key, self.size_factor_key, *covariates],
            "obsm": [each.key for each in features],
            "uns": [each.names_key for each in features],
        }
        return tuple(key for key in keys.get(slot, []) if key is not None)

    def require_counts(self, gene_likelihood: str) -> None:
        """Raise if the matrix that was set up does not hold counts.

        Parameters
        ----------
        gene_likelihood
            Name of the count likelihood that asks, for the message.

        Raises
        ------
        ValueError
            If an entry is not a whole number.
        """
        require_counts(self.first_fraction, Layer(self.layer).where, gene_likelihood)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, ready for JSON."""
        fields = {"format": FORMAT, **asdict(self)}
        for name in ("proteins", "peaks", "unlabeled_category"):
            if fields[name] is None:  # as it was written, and fingerprinted, before there were any
                del fields[name]
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Build from what :meth:`to_dict` returned.

        Parameters
        ----------
        fields
            Plain values.

        Raises
        ------
        ValueError
            If they were written in another format, or are not a registry.
        """
        values = dict(fields)
        version = values.pop("format", None)
        if version != FORMAT:
            raise ValueError(
                f"the registry was written in format {version!r}, but this release of scvae_ext reads format {FORMAT}. "
                "Run setup_anndata again, or use the release that wrote it."
            )
        try:
            for name in ("var_names", "batch_categories", "label_categories"):
                values[name] = tuple(values[name])
            categorical, continuous = values["categorical_covariates"], values["continuous_covariates"]
            values["categorical_covariates"] = tuple(
                CategoricalCovariate(each["key"], tuple(each["categories"])) for each in categorical
            )
            values["continuous_covariates"] = tuple(ContinuousCovariate(**each) for each in continuous)
            if values["first_fraction"] is not None:
                values["first_fraction"] = Entry(**values["first_fraction"])
            if values.get("proteins") is not None:
                values["proteins"] = ProteinPanel.from_dict(values["proteins"])
            if values.get("peaks") is not None:
                values["peaks"] = PeakSet.from_dict(values["peaks"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the registry is damaged ({error}). Run setup_anndata again.") from error
