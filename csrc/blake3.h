/*
 * BLAKE3's ways, for its own tests: which widths this machine can hash with, and hashing with one
 * of them. Floor 1. Any thread; the functions have no state. What others use is in lazyrestore.h.
 */
#ifndef LR_BLAKE3_H
#define LR_BLAKE3_H

#include "lazyrestore.h"

#define LR_BLAKE3_WAYS_MAX 4u

/* Numbers of chunks that are hashed side by side, ascending, the first is 1; how many ways. */
unsigned lr_blake3_ways(unsigned ret_lanes[LR_BLAKE3_WAYS_MAX]);
/* As lr_blake3, with the way that has so many lanes. */
void lr_blake3_by(unsigned lanes, const void *data, uint64_t bytes, uint8_t *ret_digest);

#endif
