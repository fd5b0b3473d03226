/*
 * Memory for large tables of which little is used: zeros that cost nothing until they are written.
 * One entry that is touched must not cost a huge page. Floor 1.
 */
#ifndef LR_RESERVE_H
#define LR_RESERVE_H

#include <stddef.h>

/* NULL where there is no address space. Given back by munmap. */
void *lr_reserve(size_t bytes);

#endif
