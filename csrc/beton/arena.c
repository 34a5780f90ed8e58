/* A list of blocks, filled from the newest. */
#include "beton/arena.h"

#include "base/memory.h"

#define BLOCK_BYTES ((size_t)1 << 20)
#define ALIGNMENT 16

struct ArenaBlock {
    ArenaBlock *next; /* owned */
    size_t capacity, used;
    unsigned char *bytes; /* owned */
};

static Status add_block(Arena *arena, size_t capacity) {
    ArenaBlock *block = NULL;
    TRY(memory_calloc(1, sizeof *block, &block));
    Status status = memory_alloc(capacity, 1, &block->bytes);
    if (status != STATUS_OK) {
        memory_free(block);
        return status;
    }
    block->capacity = capacity;
    block->next = arena->blocks;
    arena->blocks = block;
    return STATUS_OK;
}

Status beton_arena_alloc(Arena *arena, size_t size, unsigned char **out) {
    size_t rounded = (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    if (rounded < size) FAIL(STATUS_MEMORY, "cannot allocate %zu bytes", size);
    ArenaBlock *block = arena->blocks;
    if (block == NULL || rounded > block->capacity - block->used) {
        TRY(add_block(arena, rounded > BLOCK_BYTES ? rounded : BLOCK_BYTES));
        block = arena->blocks;
    }
    *out = block->bytes + block->used;
    block->used += rounded;
    return STATUS_OK;
}

static void free_block(ArenaBlock *block) {
    memory_free(block->bytes);
    memory_free(block);
}

void beton_arena_reset(Arena *arena) {
    ArenaBlock *kept = NULL;
    for (ArenaBlock *block = arena->blocks, *next; block != NULL; block = next) {
        next = block->next;
        if (kept == NULL && block->capacity == BLOCK_BYTES)
            kept = block;
        else
            free_block(block);
    }
    if (kept != NULL) {
        kept->next = NULL;
        kept->used = 0;
    }
    arena->blocks = kept;
}

void beton_arena_fini(Arena *arena) {
    for (ArenaBlock *block = arena->blocks, *next; block != NULL; block = next) {
        next = block->next;
        free_block(block);
    }
    arena->blocks = NULL;
}
