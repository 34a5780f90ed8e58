/* Little-endian loads and stores at any alignment. */
#ifndef CGXFFCV_BASE_BYTES_H
#define CGXFFCV_BASE_BYTES_H

#include <stdint.h>
#include <string.h>

#include "base/host_device.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "cgxffcv is written for little-endian machines"
#endif

#define BYTES_DEFINE_(name, type)                                                                                      \
    HOST_DEVICE type load_##name(const void *from) {                                                                   \
        type value;                                                                                                    \
        memcpy(&value, from, sizeof value);                                                                            \
        return value;                                                                                                  \
    }                                                                                                                  \
    HOST_DEVICE void store_##name(void *to, type value) { memcpy(to, &value, sizeof value); }

BYTES_DEFINE_(u16, uint16_t)
BYTES_DEFINE_(u32, uint32_t)
BYTES_DEFINE_(u64, uint64_t)
BYTES_DEFINE_(i64, int64_t)
BYTES_DEFINE_(f32, float)
BYTES_DEFINE_(f64, double)

#undef BYTES_DEFINE_

#endif
