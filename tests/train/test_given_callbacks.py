import pytest
from lightning.pytorch import callbacks as of_lightning

from scvae_ext.train.given_callbacks import INSTEAD, check_callbacks

ARGUMENTS = {
    of_lightning.GradientAccumulationScheduler: ({0: 2},),
    of_lightning.ModelPruning: ("l1_unstructured",),
    of_lightning.StochasticWeightAveraging: (1e-3,),
}


@pytest.mark.parametrize("kind", [of_lightning.TQDMProgressBar, *INSTEAD], ids=lambda kind: kind.__name__)
def test_what_cannot_work_says_what_to_do(kind):
    with pytest.raises(TypeError, match=f"cannot take the callback {kind.__name__}: "):
        check_callbacks([of_lightning.Timer(), kind(*ARGUMENTS.get(kind, ()))], {})


def test_files_are_written_only_on_request(tmp_path):
    callback = of_lightning.ModelCheckpoint(tmp_path)
    for options in ({}, {"enable_checkpointing": False}):
        with pytest.raises(ValueError, match=r"ModelCheckpoint writes files.*enable_checkpointing=True"):
            check_callbacks([callback], options)
    check_callbacks([callback], {"enable_checkpointing": True})


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_callback_is_named():
    with pytest.raises(TypeError, match="callbacks holds 'timer', which is no"):
        check_callbacks(["timer"], {})
