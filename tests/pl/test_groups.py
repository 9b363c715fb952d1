import numpy as np
import pandas as pd
import pytest

from scvae_ext.pl.groups import names_of_groups

TEXT = ["a", "b", "a"]


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        (None, ["all cells"] * 3),
        (TEXT, TEXT),
        ([1, 2, 1], ["1", "2", "1"]),
        (pd.Series(TEXT, dtype="category"), TEXT),
        (pd.Series(TEXT, dtype="string"), TEXT),
        (np.array(TEXT, dtype=object), TEXT),
        pytest.param(
            "zarr's strings",
            TEXT,
            marks=pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy has them from 2.0 on"),
        ),
    ],
)
def test_groups_are_named_by_text(groups, names):
    if isinstance(groups, str):
        groups = np.array(TEXT, dtype=np.dtypes.StringDType())
    found = names_of_groups(groups, 3)
    assert found.dtype.kind == "U"
    assert found.tolist() == names


def test_groups_are_those_of_all_cells():
    with pytest.raises(ValueError, match="groups has 3 entries, but there are 2 cells"):
        names_of_groups(TEXT, 2)
