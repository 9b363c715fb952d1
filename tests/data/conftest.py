import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

N_CELLS, N_GENES = 60, 40


@pytest.fixture
def counts():
    """Counts as a dense array: the truth that every kind of matrix is compared with."""
    generator = np.random.default_rng(1)
    dense = generator.poisson(0.7, (N_CELLS, N_GENES)).astype(np.float32)
    dense[:, 0] += 1
    dense[0] += 1
    return dense


@pytest.fixture
def adata(counts):
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical.from_codes(np.arange(N_CELLS) % 3, ["b10x", "smart", "drop"]),
            "cell_type": np.array(["T", "B"])[np.arange(N_CELLS) % 2],
            "donor": 1 + np.arange(N_CELLS) % 4,
            "age": np.linspace(20.0, 79.0, N_CELLS),
            "size": 0.5 + np.arange(N_CELLS) / N_CELLS,
        },
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    return AnnData(sp.csr_matrix(counts), obs=obs, var=var)
