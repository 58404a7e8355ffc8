"""What makes Triton's interpreter faster without changing what it computes."""

from triton.runtime import interpreter


def patch_language_once():
    """Halves the time of a kernel that calls device functions.

    The interpreter patches triton.language as a function's module sees it: when a kernel starts, where it is
    undone at the end, and at every call of a device function, for a millisecond each. Once for each module
    is enough.
    """
    patch = interpreter._patch_lang
    patched = set()

    def patch_once(function):
        starts, module = not patched, function.__globals__["__name__"]
        if module in patched:
            return None
        patched.add(module)
        scope = patch(function)
        if starts:
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    interpreter._patch_lang = patch_once
