"""The type checker that every function of the package runs under in tests."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# jaxtyping decorates methods one by one, where beartype cannot know what ``Self`` stands for.
check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any})))
