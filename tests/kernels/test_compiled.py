import numba

from scvae_ext.kernels import compiled as module
from scvae_ext.kernels.compiled import compiled


def test_without_a_folder_to_keep_it_in_a_kernel_is_compiled_all_the_same(monkeypatch):
    real = numba.njit

    def no_folder(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(module.numba, "njit", no_folder)
    double = compiled()(lambda x: 2 * x)
    assert double(21) == 42
