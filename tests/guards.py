"""Memory in which a wrong address shows: NaN where nothing was written, guard bands all around."""

import torch

BAND = 1024  # elements on each side; a multiple of 16 bytes, so that alignment stays what it was


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
            buffer = torch.full(
                (elements + 2 * BAND,), poison_value(tensor.dtype), dtype=tensor.dtype, device=tensor.device
            )
            self.buffers.append((buffer, elements))
            requires_grad = tensor.requires_grad
            # set_ and not a view: autograd restricts what may be done to views
            with torch.no_grad():
                tensor.requires_grad_(False).set_(
                    buffer.untyped_storage(), BAND, tensor.size(), tensor.stride()
                )
            return tensor.requires_grad_(requires_grad)

        return guarded

    def place(self, tensor):
        """A copy of the tensor, strides kept, between bands of NaN."""
        copy = self.guarding(torch.empty_like)(tensor, requires_grad=False)
        return copy.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)

    def check(self):
        for buffer, elements in self.buffers:
            for band in (buffer[:BAND], buffer[BAND + elements :]):
                whole = band.isnan() if band.is_floating_point() else band == poison_value(band.dtype)
                assert whole.all(), "a kernel wrote outside its tensor"
