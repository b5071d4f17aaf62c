"""Whether one node's output fits the next node's input, told from the annotations."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin


def fits(given: Any, taken: Any) -> bool:
    """Whether every value of type `given` may go where `taken` is taken.

    Subclasses and members of a union fit, type arguments are compared one by one (`list[Chunk]`
    fits `Sequence[Chunk]`). What cannot be told before a run (type variables, protocols) fits.
    """
    given, taken = _plain(given), _plain(taken)
    if given == taken or Any in (given, taken) or taken is object:
        return True
    if _is_union(given):
        return all(fits(member, taken) for member in get_args(given))
    if _is_union(taken):
        return any(fits(given, member) for member in get_args(taken))
    return _is_subclass(_origin(given), _origin(taken)) and _arguments_fit(given, taken)


def is_a(value: object, taken: Any) -> bool:
    """Whether a value may go where `taken` is taken; elements of containers are not looked at."""
    taken = _plain(taken)
    if _is_union(taken):
        return any(is_a(value, member) for member in get_args(taken))
    if taken is Any:
        return True
    try:
        return isinstance(value, _origin(taken))
    except TypeError:  # a protocol without runtime checks, a literal
        return True


def type_name(of: Any) -> str:
    """`Chunked | Embeddable`, `list[Chunk]`: as a person would write the annotation."""
    of = _plain(of)
    if of is Ellipsis:
        return "..."
    if _is_union(of):
        return " | ".join(type_name(member) for member in get_args(of))
    name = getattr(_origin(of), "__name__", None) or str(of)
    name = "None" if of is NoneType else name
    arguments = get_args(of)
    return f"{name}[{', '.join(map(type_name, arguments))}]" if arguments else str(name)


def _plain(of: Any) -> Any:
    if get_origin(of) is Annotated:
        return _plain(get_args(of)[0])
    if isinstance(of, TypeVar):
        return _plain(of.__bound__) if of.__bound__ is not None else Any
    return NoneType if of is None else of


def _is_union(of: Any) -> bool:
    return get_origin(of) in (Union, UnionType)


def _origin(of: Any) -> Any:
    return get_origin(of) or of


def _is_subclass(given: Any, taken: Any) -> bool:
    try:
        return issubclass(given, taken)
    except TypeError:
        return True


def _arguments_fit(given: Any, taken: Any) -> bool:
    ours, theirs = get_args(given), get_args(taken)
    if len(ours) != len(theirs):  # one side does not say, or the classes count differently
        return True
    return all(a == b or fits(a, b) for a, b in zip(ours, theirs, strict=True))
