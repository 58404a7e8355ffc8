"""Which of a model's layers a caller means: by pattern of the name, by type or by a function."""

import difflib
import fnmatch


def _as_tuple(given):
    return tuple(given) if isinstance(given, list | tuple | set | frozenset) else (given,)


def _chooses(selector, name, module):
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(name, selector)
    if isinstance(selector, type):
        return isinstance(module, selector)
    return bool(selector(name, module))


def chooses(given, name, module):
    """Whether one of the selectors that `select` takes agrees."""
    return any(_chooses(selector, name, module) for selector in _as_tuple(given))


def _check(argument, selector, layers, names):
    if not isinstance(selector, str | type) and not callable(selector):
        raise TypeError(
            f"expected {argument} to be a pattern of names, a class, a function (name, module) -> bool, or a "
            f"list of these, got a {type(selector).__name__}: {selector!r}"
        )
    if callable(selector) and not isinstance(selector, type):
        return  # may say no to everything
    if any(_chooses(selector, name, module) for name, module in layers):
        return
    if not isinstance(selector, str):
        raise ValueError(
            f"expected {argument} to name a class of some layer that replace knows, and there is none of "
            f"{selector.__module__}.{selector.__qualname__} among the {len(layers)} of this model"
        )
    inside = selector in names and any(name.startswith(f"{selector}.") for name, _ in layers)
    close = difflib.get_close_matches(selector, [name for name, _ in layers], n=3, cutoff=0.0)
    hint = f"{selector}.*" if inside else ", ".join(close) or "none"
    raise ValueError(
        f"expected {argument} to match the name of some layer that replace knows, and {selector!r} matches "
        f"none of the {len(layers)} of this model; " + ("try " if inside else "nearest: ") + hint
    )


def select(argument, given, layers, names):
    """The names among `layers`, (name, module) pairs, that `given` selects.

    given: a pattern of names as `fnmatch` has them, a class, a function (name, module) -> bool, or a list of
        these, of which one has to agree.
    names: of all modules.

    Raises TypeError for anything else, ValueError for a pattern or a class that selects nothing.
    """
    for selector in _as_tuple(given):
        _check(argument, selector, layers, names)
    return {name for name, module in layers if chooses(given, name, module)}
