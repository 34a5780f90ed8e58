"""Values that a quantiser may get wrong."""

import numpy as np

F = np.float32


def specials():
    """Buckets of 32 elements, each difficult in its own way."""
    base = np.random.default_rng(3).standard_normal(32).astype(F)
    rows = [base * F(s) for s in (1e-45, 1e-42, 1e-38, 1e-30, 1e-12, 1.0, 1e12, 1e30, 1e37)]
    for value in (np.nan, -np.nan, np.inf, -np.inf, 2.0**125, -(2.0**125), np.nextafter(F(2.0**125), F(0)), 1e-40):
        row = base.copy()
        row[17] = value
        rows.append(row)
    payload = base.copy()
    payload.view(np.uint32)[3] = 0xFF800001
    rows.append(payload)
    for value in (0.0, -0.0, 1.5, -3.0, 2.0**-126, 2.0**-149, -(2.0**-149), 2.0**124):
        rows.append(np.full(32, value, F))
    zeros = np.zeros(32, F)
    zeros[::2] = -0.0
    rows += [zeros, np.where(np.arange(32) % 2, F(2.0**-126), F(-(2.0**-127))), -zeros]
    rows += [np.linspace(0, 15 * 2.0**-126, 32, dtype=F), np.linspace(0, 15.5 * 2.0**-126, 32, dtype=F)]
    rows += [np.array([2.0**124.99, -(2.0**124.99)] * 16, F), np.arange(32, dtype=F), np.arange(32, dtype=F) - 0.5]
    bits = np.random.default_rng(4).integers(0, 2**32, (40, 32), dtype=np.uint32)
    rows += list((bits & np.uint32(0xFDFFFFFF)).view(F)) + list(bits[:10].view(F))
    return np.concatenate(rows)
