"""A model for comparisons of which a test needs some methods alone."""


class JudgedModel:
    """Has every method that a comparison may call, and no answer to what the test does not expect."""

    def centre(self, minibatch):
        raise NotImplementedError

    def draw(self, minibatch):
        raise NotImplementedError

    def expected(self, state, minibatch):
        raise NotImplementedError

    def counts(self, state, minibatch):
        raise NotImplementedError

    def squared_error(self, minibatch, n_samples):
        raise NotImplementedError
