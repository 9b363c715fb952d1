"""The type checker that every function of the package runs under in tests."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(
    conf=BeartypeConf(
        # jaxtyping decorates methods one by one, where beartype cannot know what ``Self`` stands for.
        hint_overrides=FrozenDict({Self: Any}),
        # An int is a float to mypy, too.
        is_pep484_tower=True,
    )
)
