/* XXH64 (Yann Collet's published specification, xxhash_spec.md): checksums of files and of replicas. */
#ifndef CGXFFCV_BASE_HASH_H
#define CGXFFCV_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(const void *data, size_t size, uint64_t seed);

#endif
