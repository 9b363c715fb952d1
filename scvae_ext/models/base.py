"""What every model shares."""

from scvae_ext.models.persistence import PersistenceMixin
from scvae_ext.models.training import TrainingMixin

__all__ = ["BaseModel"]


class BaseModel(TrainingMixin, PersistenceMixin):
    """A module, the registry of the data that it is for, and the AnnData that results go to; trained and saved."""
