"""The data module of a user, as training wants it."""

from collections.abc import Iterable, Iterator, Sequence

from lightning import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from scvae_ext.minibatch import Minibatch

__all__ = ["GivenData"]


class GivenData(LightningDataModule):
    """Minibatches of any Lightning data module, in blocks for training and one by one for validation.

    Parameters
    ----------
    given
        The data module. Its loaders yield :class:`~scvae_ext.minibatch.Minibatch` or sequences of them.
    n_genes
        Number of genes that the model has.
    minibatches_per_block
        Number of minibatches in a block.

    Raises
    ------
    TypeError
        If it is not a Lightning data module.
    """

    def __init__(self, given: LightningDataModule, *, n_genes: int, minibatches_per_block: int) -> None:
        super().__init__()
        if not isinstance(given, LightningDataModule):
            raise TypeError(
                f"datamodule must be a lightning.LightningDataModule, but is {type(given).__module__}."
                f"{type(given).__qualname__}. Derive it from lightning.LightningDataModule."
            )
        self.given = given
        self.n_genes = n_genes
        self.minibatches_per_block = minibatches_per_block

    @property
    def validates(self) -> bool:
        """Whether the data module has held-out cells."""
        return is_overridden("val_dataloader", self.given, LightningDataModule)

    @override
    def prepare_data(self) -> None:
        self.given.prepare_data()

    @override
    def setup(self, stage: str) -> None:
        self.given.trainer = self.trainer
        self.given.setup(stage)

    @override
    def teardown(self, stage: str) -> None:
        self.given.teardown(stage)

    @override
    def train_dataloader(self) -> Iterable[list[Minibatch]]:
        return _Blocks(_Minibatches(self.given.train_dataloader(), self.n_genes), self.minibatches_per_block)

    @override
    def val_dataloader(self) -> Iterable[Minibatch]:
        return _Minibatches(self.given.val_dataloader(), self.n_genes) if self.validates else []


class _Minibatches:
    """The minibatches of a loader, one by one."""

    def __init__(self, loader: Iterable[Minibatch | Sequence[Minibatch]], n_genes: int) -> None:
        self.loader = loader
        self.n_genes = n_genes

    def __iter__(self) -> Iterator[Minibatch]:
        for item in self.loader:
            for minibatch in [item] if isinstance(item, Minibatch) else item:
                if not isinstance(minibatch, Minibatch):
                    raise TypeError(
                        "The loaders of datamodule must yield scvae_ext.minibatch.Minibatch or lists of them, but one "
                        f"yields {type(minibatch).__module__}.{type(minibatch).__qualname__}. With a torch DataLoader, "
                        "pass batch_size=None, so that it leaves them as they are."
                    )
                if minibatch.counts.n_genes != self.n_genes:
                    raise ValueError(
                        f"datamodule yields cells with {minibatch.counts.n_genes} genes, but the model has "
                        f"{self.n_genes}, in the order of adata.var_names at set-up."
                    )
                yield minibatch


class _Blocks:
    """Minibatches in lists."""

    def __init__(self, minibatches: Iterable[Minibatch], per_block: int) -> None:
        self.minibatches = minibatches
        self.per_block = per_block

    def __iter__(self) -> Iterator[list[Minibatch]]:
        block: list[Minibatch] = []
        for minibatch in self.minibatches:
            block.append(minibatch)
            if len(block) == self.per_block:
                yield block
                block = []
        if block:
            yield block
