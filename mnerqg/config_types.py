"""What the settings in `config` are made of: the base of their sections, and the types of their values."""

from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from mnerqg.places import place

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]

T = TypeVar("T")
Place = Annotated[str, AfterValidator(place)]
"""A path or URI; `~` is the home directory."""


def _as_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


# YAML has lists only: the one exception from the strict types of `Section`. What they hold is strict again. One text
# is a list of one.
Many = Annotated[tuple[T, ...], Field(strict=False), BeforeValidator(_as_many)]
Pair = Annotated[tuple[T, T], Field(strict=False)]


def _in_one_error(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Pydantic reports an error for each member of a union, under keys that nobody wrote; here it is one."""
    try:
        return check(value)
    except ValidationError:
        raise PydanticCustomError(
            "count_or_range", "It must be a whole number above 0, or two of them as [min, max]"
        ) from None


CountOrRange = Annotated[PositiveInt | Pair[PositiveInt], WrapValidator(_in_one_error)]


class Section(BaseModel):
    """Base of all configuration sections."""

    # strict: true is no number, "256" none either, and 1 is no boolean. A whole number is a float too.
    # The docstring under a field is its meaning in the help of the jobs (`cli.describe_settings`).
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
