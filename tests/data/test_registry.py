import dataclasses
import json

import pytest

from scvae_ext.data.peaks import PeakSet
from scvae_ext.data.proteins import ProteinPanel
from scvae_ext.data.registry import CategoricalCovariate, ContinuousCovariate, Registry
from scvae_ext.data.validation import Entry

FULL = Registry(
    layer="counts",
    var_names=("CD3D", "µ-gene"),
    batch_key="batch",
    batch_categories=("b1", "b2", "b3"),
    labels_key="cell_type",
    label_categories=("T", "B"),
    size_factor_key="size",
    categorical_covariates=(CategoricalCovariate("donor", ("d1", "d2")), CategoricalCovariate("site", ("x", "y", "z"))),
    continuous_covariates=(ContinuousCovariate("age", 1 / 3, 0.1),),
    first_fraction=Entry("cell", "CD3D", 0.25),
)
PLAIN = Registry(layer=None, var_names=("a", "b", "c"))


def test_sizes():
    assert (FULL.n_genes, FULL.n_batches, FULL.n_labels) == (2, 3, 2)
    assert FULL.n_categories_per_covariate == (2, 3)
    assert FULL.n_continuous_covariates == 1
    assert (PLAIN.n_genes, PLAIN.n_batches, PLAIN.n_labels) == (3, 1, 1)
    assert PLAIN.n_categories_per_covariate == ()


def test_keys_that_are_read():
    assert FULL.keys_read("layers") == ("counts",)
    assert FULL.keys_read("obs") == ("batch", "cell_type", "size", "donor", "site", "age")
    assert not any(PLAIN.keys_read(slot) for slot in ("layers", "obs", "obsm", "uns", "varm"))
    proteins, peaks = ProteinPanel("protein", ("p",), ((True,),), "names"), PeakSet("peaks", ("q",), (True,))
    beside = dataclasses.replace(PLAIN, proteins=proteins, peaks=peaks)
    assert beside.keys_read("obsm") == ("protein", "peaks")
    assert beside.keys_read("uns") == ("names",)


@pytest.mark.parametrize("registry", [FULL, PLAIN])
def test_json_round_trip_is_exact(registry):
    assert Registry.from_dict(json.loads(json.dumps(registry.to_dict()))) == registry


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.layer = "other"


def test_hash_is_stable_and_tells_registries_apart():
    # Written down once: it must not change between releases, machines or runs.
    assert PLAIN.hash == "0791c130df4bd4ec"
    others = [
        dataclasses.replace(PLAIN, var_names=("b", "a", "c")),
        dataclasses.replace(PLAIN, layer="X"),
        dataclasses.replace(PLAIN, batch_key="b", batch_categories=("c",)),
    ]
    assert len({PLAIN.hash, FULL.hash, *(other.hash for other in others)}) == 5
    assert Registry.from_dict(json.loads(json.dumps(FULL.to_dict()))).hash == FULL.hash


def test_other_format_is_refused():
    fields = PLAIN.to_dict() | {"format": 2}
    with pytest.raises(ValueError, match="written in format 2, but this release of scvae_ext reads format 1"):
        Registry.from_dict(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"format": 1}, "damaged.*var_names"), (PLAIN.to_dict() | {"unknown": 1}, "damaged.*unknown")],
)
def test_damaged_registry_says_so(fields, message):
    with pytest.raises(ValueError, match=message):
        Registry.from_dict(fields)


def test_require_counts():
    PLAIN.require_counts("nb")
    with pytest.raises(ValueError, match=r"'zinb' needs raw counts.*'CD3D' of adata.layers\['counts'\] is 0.25"):
        FULL.require_counts("zinb")
