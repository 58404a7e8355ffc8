"""The masks of dropout in torch's operations: bit for bit those of `normreg.kernels.device.random`."""

import torch

WORD = 2**32 - 1
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57  # Philox4x32's
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10


def philox(seed, call):
    """The four random words of each call, [*calls, 4], as numbers of int64; seed is an int64 tensor."""
    words = [call & WORD, (call >> 32) & WORD, torch.zeros_like(call), torch.zeros_like(call)]
    key = [seed & WORD, (seed >> 32) & WORD]
    for _ in range(ROUNDS):
        # of 64 bits, which wrap to a negative number: its upper word is the product's all the same
        of_0, of_2 = (word * by for word, by in zip(words[::2], MULTIPLIERS))
        words = [
            ((of_2 >> 32) & WORD) ^ words[1] ^ key[0],
            of_2 & WORD,
            ((of_0 >> 32) & WORD) ^ words[3] ^ key[1],
            of_0 & WORD,
        ]
        key = [(part + step) & WORD for part, step in zip(key, KEY_STEPS)]
    return torch.stack(words, -1)


def keep_mask(seed, rows, cols, keep_threshold, bits):
    """The decisions of elements [rows, cols], each row of which begins with a call of its own."""
    fields = 128 // bits
    calls = (cols + fields - 1) // fields
    words = philox(seed, torch.arange(rows * calls, device=seed.device))
    if bits == 16:
        words = torch.stack((words & 0xFFFF, words >> 16), -1)
    return words.reshape(rows, -1)[:, :cols] < keep_threshold
