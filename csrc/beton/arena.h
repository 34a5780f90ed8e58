/* Memory handed out piece by piece and taken back all at once: one thread's share of a chunk. Private to beton/. */
#ifndef CGXFFCV_BETON_ARENA_H
#define CGXFFCV_BETON_ARENA_H

#include <stddef.h>

#include "base/status.h"

typedef struct ArenaBlock ArenaBlock;

/* Zeroed memory is an empty arena. */
typedef struct Arena {
    ArenaBlock *blocks; /* owned, newest first */
} Arena;

/* `size` bytes, valid until the next reset. */
Status beton_arena_alloc(Arena *arena, size_t size, unsigned char **out);

/* Takes everything back; keeps one block of moderate size. */
void beton_arena_reset(Arena *arena);
void beton_arena_fini(Arena *arena);

#endif
