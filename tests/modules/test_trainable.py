import pytest
from minibatches import make_minibatch

from scvae_ext.modules import VAE, DeterministicAutoencoder, Trainable


def test_it_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Trainable()


@pytest.mark.parametrize("module", [VAE(7, n_hidden=4), DeterministicAutoencoder(7, n_hidden=4)])
def test_the_monitored_term_exists_and_its_mode_agrees_with_the_score(module):
    objective = module.objective(make_minibatch())
    sign = {"max": 1, "min": -1}[module.monitor_mode]
    assert (sign * objective.terms()[module.monitor]).tolist() == objective.score().tolist()
