"""What autograd keeps of a call for its backward."""

import torch


def saved_by(call):
    """(result, what autograd saved for its backward)."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = call()
    return y, saved


def bytes_beside(saved, *given):
    """Bytes of the distinct storages of the saved tensors that are not those of the given ones."""
    known = {t.untyped_storage().data_ptr() for t in given}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sum(size for pointer, size in storages.items() if pointer not in known)
