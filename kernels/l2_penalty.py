"""The L2 penalty of many tensors: y = weight_decay / 2 sum_i sum w_i^2, and dw_i = weight_decay dy w_i.

Any number of tensors of any sizes and dtypes in one launch each way, and one more that merges the sums of
the chunks: every element is read once forward, read and written once backward. A chunk is summed in float32,
in float64 where its tensor is; these sums are merged in float64, in the order of the tensors.

The addresses of the tensors are in a table on the device, int64 [COLUMNS, tensors]:

    address     of the first element
    elements    how many
    dtype       position in DTYPES
    first       index of the tensor's first chunk, among the chunks of all tensors
    offset      of its gradient among the gradients of its dtype, which lie in one buffer

Its numbers travel as arguments of small kernels, by value: without a host buffer that would have to outlive
an asynchronous copy, without a synchronisation, and into a CUDA graph like the arguments of any kernel. As
long as no tensor moves, a table is written once for each stream. A graph writes its own at every replay,
because what a graph reads must not be freed before the graph is. (Tensors as a tuple of arguments would be
compiled anew for every number of tensors, and an argument list has room for a few hundred.)
"""

import functools

import torch
import triton
import triton.language as tl

from normreg.kernels import launch, tiling

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COLUMNS = 5
# A number n of a table is sent as 2n + ODD: Triton, which specialises on every number of a tuple, sees an
# int64 that 16 does not divide, whatever n is, and compiles once.
ODD = 2**62 + 1
TABLES = 32  # kept, of the lists of tensors used last; a few kilobytes each


@triton.jit(do_not_specialize=["first", "numbers"])
def l2_penalty_table_kernel(table_ptr, first: tl.int64, numbers, ODD: tl.constexpr):
    for i in tl.static_range(len(numbers)):
        tl.store(table_ptr + first + i, (numbers[i] - ODD) >> 1)


@triton.jit
def find_tensor(table_ptr, tensors, chunk, BLOCK_TENSORS: tl.constexpr):
    """The tensor that a chunk belongs to: one less than how many begin with it or before it."""
    begun = 0
    for start in range(0, tensors, BLOCK_TENSORS):
        tensor = start + tl.arange(0, BLOCK_TENSORS)
        mask = tensor < tensors
        first = tl.load(table_ptr + 3 * tensors + tensor, mask=mask, other=0)
        begun += tl.sum((mask & (first <= chunk)).to(tl.int32), 0)
    return begun - 1


@triton.jit
def find_chunk(table_ptr, tensors, CHUNK: tl.constexpr, BLOCK_TENSORS: tl.constexpr):
    """Of this program: dtype, address, elements left in the tensor, offset of the gradient."""
    chunk = tl.program_id(0)
    tensor = find_tensor(table_ptr, tensors, chunk, BLOCK_TENSORS)
    address = tl.load(table_ptr + tensor)
    elements = tl.load(table_ptr + tensors + tensor)
    dtype = tl.load(table_ptr + 2 * tensors + tensor)
    first = (chunk - tl.load(table_ptr + 3 * tensors + tensor)) * CHUNK
    offset = tl.multiple_of(tl.load(table_ptr + 4 * tensors + tensor), 16)
    return dtype, address, first, tl.minimum(elements - first, CHUNK), offset


@triton.jit
def pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    ptr = address.to(tl.pointer_type(DTYPE), bitcast=False)
    if ALIGNED:
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit
def sum_of_squares(address, first, elements, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    COMPUTE_DTYPE: tl.constexpr = tl.float64 if DTYPE.is_fp64() else tl.float32
    w_ptr = pointer(address, DTYPE, ALIGNED) + first
    squares = tl.zeros([BLOCK], COMPUTE_DTYPE)
    whole = elements // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):  # unmasked, because a mask of any length splits 16-byte accesses
        w = tl.load(w_ptr + start + tl.arange(0, BLOCK)).to(COMPUTE_DTYPE)
        squares += w * w
    rest = whole + tl.arange(0, BLOCK)
    w = tl.load(w_ptr + rest, mask=rest < elements, other=0.0).to(COMPUTE_DTYPE)
    return tl.sum(squares + w * w, 0).to(tl.float64)


@triton.jit(do_not_specialize=["tensors"])
def l2_penalty_forward_kernel(
    table_ptr,                   # [COLUMNS, tensors]
    partial_ptr,                 # float64 [chunks]
    tensors,
    HAS_FLOAT64: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_TENSORS: tl.constexpr,
):  # fmt: skip
    dtype, address, first, elements, _ = find_chunk(table_ptr, tensors, CHUNK, BLOCK_TENSORS)
    partial = tl.full([], 0.0, tl.float64)
    if dtype == 0:
        partial = sum_of_squares(address, first, elements, tl.float32, ALIGNED, BLOCK)
    elif dtype == 1:
        partial = sum_of_squares(address, first, elements, tl.bfloat16, ALIGNED, BLOCK)
    elif dtype == 2:
        partial = sum_of_squares(address, first, elements, tl.float16, ALIGNED, BLOCK)
    elif HAS_FLOAT64:
        partial = sum_of_squares(address, first, elements, tl.float64, ALIGNED, BLOCK)
    tl.store(partial_ptr + tl.program_id(0), partial)


@triton.jit(do_not_specialize=["chunks"])
def l2_penalty_merge_kernel(
    partial_ptr,                 # float64 [chunks]
    y_ptr,                       # scalar
    chunks,
    weight_decay: tl.float64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + chunk, mask=chunk < chunks, other=0.0)
    y = 0.5 * weight_decay * tl.sum(total, 0)
    tl.store(y_ptr, y.to(y_ptr.dtype.element_ty))


@triton.jit
def scale_chunk(address, first, elements, dw_ptr, scale, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    DTYPE: tl.constexpr = dw_ptr.dtype.element_ty
    COMPUTE_DTYPE: tl.constexpr = tl.float64 if DTYPE.is_fp64() else tl.float32
    scale = scale.to(COMPUTE_DTYPE)
    w_ptr = pointer(address, DTYPE, ALIGNED) + first
    dw_ptr += first
    whole = elements // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        w = tl.load(w_ptr + offsets).to(COMPUTE_DTYPE)
        tl.store(dw_ptr + offsets, (w * scale).to(DTYPE))
    rest = whole + tl.arange(0, BLOCK)
    w = tl.load(w_ptr + rest, mask=rest < elements, other=0.0).to(COMPUTE_DTYPE)
    tl.store(dw_ptr + rest, (w * scale).to(DTYPE), mask=rest < elements)


@triton.jit(do_not_specialize=["tensors"])
def l2_penalty_backward_kernel(
    table_ptr,                   # [COLUMNS, tensors]
    dy_ptr,                      # scalar
    dw_0_ptr, dw_1_ptr, dw_2_ptr, dw_3_ptr,  # gradients of each dtype, or None
    tensors,
    weight_decay: tl.float64,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_TENSORS: tl.constexpr,
):  # fmt: skip
    dtype, address, first, elements, offset = find_chunk(table_ptr, tensors, CHUNK, BLOCK_TENSORS)
    scale = weight_decay * tl.load(dy_ptr).to(tl.float64)
    if dw_0_ptr is not None:
        if dtype == 0:
            scale_chunk(address, first, elements, dw_0_ptr + offset, scale, ALIGNED, BLOCK)
    if dw_1_ptr is not None:
        if dtype == 1:
            scale_chunk(address, first, elements, dw_1_ptr + offset, scale, ALIGNED, BLOCK)
    if dw_2_ptr is not None:
        if dtype == 2:
            scale_chunk(address, first, elements, dw_2_ptr + offset, scale, ALIGNED, BLOCK)
    if dw_3_ptr is not None:
        if dtype == 3:
            scale_chunk(address, first, elements, dw_3_ptr + offset, scale, ALIGNED, BLOCK)


def dense(tensor):
    """The tensor, or a contiguous copy where its elements do not fill a piece of memory, each once."""
    filled = tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(tensor)
    return tensor if filled else tensor.contiguous()


def lay_out(tensors):
    """Rows of the table, chunks of all tensors, and the elements of each dtype's gradients."""
    rows, chunks, sizes = [], 0, dict.fromkeys(DTYPES, 0)
    for tensor in tensors:
        elements, dtype = tensor.numel(), tensor.dtype
        rows.append((tensor.data_ptr(), elements, DTYPES.index(dtype), chunks, sizes[dtype]))
        chunks += triton.cdiv(elements, tiling.elements.L2_PENALTY_CHUNK)
        sizes[dtype] += triton.cdiv(elements, 16) * 16
    return tuple(rows), chunks, sizes


def write_table(rows, device):
    numbers = [number for column in zip(*rows) for number in column]
    at_a_time = tiling.elements.L2_PENALTY_NUMBERS
    table = torch.empty(triton.cdiv(len(numbers), at_a_time) * at_a_time, dtype=torch.int64, device=device)
    for first in range(0, len(numbers), at_a_time):
        some = [2 * number + ODD for number in numbers[first : first + at_a_time]]
        some += [ODD] * (at_a_time - len(some))
        plan = launch.Launch(l2_penalty_table_kernel, (1,), device, first, tuple(some), ODD=ODD, num_warps=1)
        launch.launch(plan, table)
    return table


@functools.lru_cache(TABLES)
def kept_table(rows, device, stream):
    return write_table(rows, device)


def table_of(rows, device):
    """Written on the current stream, before what is launched on it next."""
    if device.type != "cuda":
        return write_table(rows, device)
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return write_table(rows, device)
        return kept_table(rows, device, torch.cuda.current_stream().cuda_stream)


def chunk_constants(rows):
    tile = tiling.elements.l2_penalty_tile()
    return dict(
        ALIGNED=all(row[0] % 16 == 0 for row in rows), CHUNK=tiling.elements.L2_PENALTY_CHUNK,
        BLOCK=tile.cols,
        BLOCK_TENSORS=tiling.elements.L2_PENALTY_TENSORS, num_warps=tile.num_warps,
    )  # fmt: skip


def sum_dtype(tensors):
    """float64 as soon as one tensor is, else float32."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def l2_penalty_forward(tensors, weight_decay):
    """The penalty of tensors of one device, a scalar of `sum_dtype`."""
    y = torch.empty((), dtype=sum_dtype(tensors), device=tensors[0].device)
    tensors = [dense(tensor) for tensor in tensors if tensor.numel()]
    rows, chunks, _ = lay_out(tensors)
    partial = torch.empty(chunks, dtype=torch.float64, device=y.device)
    if chunks:
        plan = launch.Launch(
            l2_penalty_forward_kernel, (chunks,), y.device, len(rows),
            HAS_FLOAT64=y.dtype == torch.float64, **chunk_constants(rows),
        )  # fmt: skip
        launch.launch(plan, table_of(rows, y.device), partial, through=tensors)
    tile = tiling.elements.l2_penalty_merge_tile()
    plan = launch.Launch(
        l2_penalty_merge_kernel,
        (1,),
        y.device,
        chunks,
        weight_decay,
        BLOCK=tile.cols,
        num_warps=tile.num_warps,
    )
    launch.launch(plan, partial, y)
    return y


def l2_penalty_backward(dy, tensors, weight_decay):
    """dw of every tensor, in its dtype and layout, or contiguous where the tensor has gaps or overlaps."""
    originals, tensors = tensors, [dense(tensor) for tensor in tensors if tensor.numel()]
    rows, chunks, sizes = lay_out(tensors)
    buffers = {
        dtype: torch.empty(size, dtype=dtype, device=dy.device) if size else None
        for dtype, size in sizes.items()
    }
    if chunks:
        plan = launch.Launch(
            l2_penalty_backward_kernel, (chunks,), dy.device, len(rows), weight_decay, **chunk_constants(rows)
        )
        launch.launch(plan, table_of(rows, dy.device), dy, *buffers.values(), through=tensors)
    gradients = (
        buffers[tensor.dtype][offset:].as_strided(tensor.shape, tensor.stride())
        for tensor, (*_, offset) in zip(tensors, rows, strict=True)
    )
    return [next(gradients) if tensor.numel() else torch.empty_like(tensor) for tensor in originals]
