/*
 * Memory for large tables of which little is used: zeros that cost nothing until they are written.
 * One entry that is touched must not cost a huge page. And buffers, which are used as a whole.
 * Floor 1.
 */
#ifndef LR_RESERVE_H
#define LR_RESERVE_H

#include <stdbool.h>
#include <stddef.h>

/* NULL where there is no address space. Given back by munmap. */
void *lr_reserve(size_t bytes);

/* Whether there are so many bytes now, short of any limit. By system calls, which fail where there
 * is no memory: whoever touched some would wait for it. */
bool lr_reserve_is_room(size_t bytes);

/* A buffer; what is in it is undefined. To have its page frames cleared takes as long as decoding
 * what comes into it: so the last that were given back are kept for the next to take. NULL where
 * there is no memory. */
void *lr_buffer_take(size_t bytes);
void lr_buffer_give(void *buffer, size_t bytes);

#endif
