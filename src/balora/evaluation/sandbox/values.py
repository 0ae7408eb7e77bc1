"""Values that tests and a program send each other, as JSON text. It imports only the standard library.

Both run in processes of their own. Numbers, texts and containers are sent by value: the receiver builds objects of Python's own
types from them, so a program's class cannot decide whether a result is equal to the expected one. An object of a subclass is
sent as a value of the type that it extends. Everything else stays where it is, and the other side gets its number.
"""

from __future__ import annotations

import builtins
import json
from _collections import deque  # collections itself takes milliseconds, and each program starts an interpreter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_ARRAY_KINDS = frozenset("biufcSU")
_WHOLE = 2**63
_SEQUENCES: dict[str, Any] = {"t": tuple, "s": set, "z": frozenset, "q": deque}


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
    """Return a value in the form that JSON holds. ``refer`` gives that form for an object that is not sent by value."""
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -_WHOLE < value < _WHOLE else {"i": hex(value)}
    if kind is list:
        return [encode(part, refer) for part in value]
    if kind is dict:
        return {"d": [[encode(key, refer), encode(part, refer)] for key, part in value.items()]}
    for tag, sequence in _SEQUENCES.items():
        if kind is sequence:
            return {tag: [encode(part, refer) for part in value]}
    if kind in (bytes, bytearray):
        return {"b" if kind is bytes else "y": value.hex()}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind is range:
        return {"r": [encode(part, refer) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"e": 0}
    if kind is type and (name := getattr(value, "__name__", "")) and getattr(builtins, name, None) is value:
        return {"x": name}
    if kind.__module__ in ("fractions", "decimal") and kind.__name__ in ("Fraction", "Decimal"):
        return {kind.__name__: str(value)}
    if kind.__module__ == "numpy":
        found = _encode_array(value, refer)
        if found is not None:
            return found
    plain = _plain(value)
    return refer(value) if plain is value else encode(plain, refer)


def decode(form: Any, find: Callable[[str, Any], Any]) -> Any:
    """Return the value of a form. ``find`` gives the object of a number (``o``: the sender's, ``h``: the receiver's own).

    Raises:
        ValueError: The form is not one that `encode` makes.
    """
    if form is None or isinstance(form, bool | int | float | str):
        return form
    if isinstance(form, list):
        return [decode(part, find) for part in form]
    if not isinstance(form, dict) or len(form) != 1:
        raise ValueError("not a value")
    ((tag, content),) = form.items()
    if tag == "d":
        return {decode(key, find): decode(part, find) for key, part in content}
    if tag in _SEQUENCES:
        return _SEQUENCES[tag]([decode(part, find) for part in content])
    if tag in ("o", "h"):
        return find(tag, content)
    match tag:
        case "i":
            return int(content, 16)
        case "b":
            return bytes.fromhex(content)
        case "y":
            return bytearray.fromhex(content)
        case "c":
            return complex(*content)
        case "r":
            return range(*(decode(part, find) for part in content))
        case "e":
            return Ellipsis
        case "x":
            found = getattr(builtins, content)
            if type(found) is type:
                return found
        case "Fraction" | "Decimal":
            import decimal
            import fractions

            return fractions.Fraction(content) if tag == "Fraction" else decimal.Decimal(content)
        case "n":
            return _decode_array(*content)
    raise ValueError(f"not a value: {tag}")


def write(message: Any) -> bytes:
    """Return a message as one line."""
    return json.dumps(message).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Return an object of a subclass as a value of the type that it extends; the object itself if there is none.

    The methods are those of that type, and not those of the subclass.
    """
    kind = type(value)
    if issubclass(kind, int):
        return int.__pos__(value)
    if issubclass(kind, float):
        return float.__pos__(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, dict):
        return dict(dict.items(value))
    for base in (list, tuple, set, frozenset, deque):
        if issubclass(kind, base):
            return base(base.__iter__(value))
    return value


def _encode_array(value: Any, refer: Callable[[Any], Any]) -> Any:
    """Return a numpy scalar as Python's number, and an array by its bytes; None for another object of numpy."""
    dtype = getattr(getattr(value, "dtype", None), "str", None)
    if not _is_array_type(dtype):
        return None
    if type(value).__name__ == "ndarray":
        return {"n": [dtype, list(value.shape), value.tobytes().hex()]}
    return encode(value.item(), refer) if value.shape == () else None


def _is_array_type(dtype: Any) -> bool:
    """Check for an element type of numbers or texts, as numpy writes it: ``<f8``."""
    return isinstance(dtype, str) and dtype[:1] in "<>|=" and dtype[1:2] in _ARRAY_KINDS and dtype[2:].isdecimal()


def _decode_array(dtype: Any, shape: Any, content: str) -> Any:
    import numpy

    if not _is_array_type(dtype):
        raise ValueError("not an array")
    return numpy.frombuffer(bytes.fromhex(content), numpy.dtype(dtype)).reshape([int(size) for size in shape]).copy()
