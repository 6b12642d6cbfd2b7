"""Tables that depend on shapes alone, made once for each."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")
MOST = 1024  # tables of one kind that are kept


def made_once(make: Callable[P, T]) -> Callable[P, T]:
    """Keeps what a function makes, a tensor or a tuple with tensors in it, by its arguments.

    Within torch.compile it is made anew, as a part of the graph; and tensors of a mode of torch, which hold no values or
    know no gradients, are not kept, for they cannot be used outside of it.
    """
    known: dict[Any, T] = {}

    @wraps(make)
    def found(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return make(*args, **kwargs)
        key = (args, tuple(kwargs.items()))
        if (made := known.get(key)) is None:  # looked up once, for another thread may clear them
            made = make(*args, **kwargs)
            tensors = [one for one in (made if isinstance(made, tuple) else (made,)) if isinstance(one, Tensor)]
            if all(type(one) is Tensor and not one.is_inference() for one in tensors):
                if len(known) >= MOST:
                    known.clear()
                known[key] = made
        return made

    return found
