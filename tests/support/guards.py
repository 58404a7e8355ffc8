"""Memory that shows wrong addresses: NaN where nothing was written, guard bands all around."""

import torch

BAND = 4096  # elements on each side, more than a tile; alignment stays what it was
INTACT = 77  # what the bands of the library's own tensors hold: what is written there is never this


def poison_value(dtype):
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max


class Memory:
    """Allocates poisoned tensors between guard bands, and knows whether the bands are whole."""

    def __init__(self):
        self.buffers = []  # (flat buffer, elements between the bands)

    def guarding(self, allocate):
        """`allocate`, torch.empty or torch.empty_like, with its results in guarded memory."""

        def guarded(*arguments, **options):
            tensor = allocate(*arguments, **options)
            plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_meta
            if not plain or tensor.dtype in (torch.bool, torch.uint8) or tensor.dtype.is_complex:
                return tensor
            elements = tensor.untyped_storage().nbytes() // tensor.element_size()
            if elements > 2**24:  # a test about size, not about memory
                return tensor
            buffer = self._surround(tensor, elements, band=INTACT)
            self.buffers.append((buffer, elements))
            return tensor

        return guarded

    def place(self, tensor):
        """A copy of the tensor, strides kept, between bands of NaN, which spoil what reads them."""
        copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        elements = copy.untyped_storage().nbytes() // copy.element_size()
        self._surround(copy, elements, band=poison_value(tensor.dtype))
        return copy.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)

    @staticmethod
    def _surround(tensor, elements, band):
        """Moves the tensor into the poisoned middle of a flat buffer, which is returned."""
        flat = (elements + 2 * BAND,)
        buffer = torch.full(flat, band, dtype=tensor.dtype, device=tensor.device)
        buffer[BAND : BAND + elements] = poison_value(tensor.dtype)
        requires_grad = tensor.requires_grad
        # set_ and not a view: autograd restricts what may be done to views
        with torch.no_grad():
            tensor.requires_grad_(False)
            tensor.set_(buffer.untyped_storage(), BAND, tensor.size(), tensor.stride())
        tensor.requires_grad_(requires_grad)
        return buffer

    def check(self):
        for buffer, elements in self.buffers:
            for band in (buffer[:BAND], buffer[BAND + elements :]):
                assert (band == INTACT).all(), "a kernel wrote outside its tensor"
