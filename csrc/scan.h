/*
 * Finding zero pages and gathering the others, for writers. Floor 1. No state; any thread; buffers
 * may lie at any address. lr_scan_pages() and lr_gather_pages() are in lazyrestore.h.
 */
#ifndef LR_SCAN_H
#define LR_SCAN_H

#include "lazyrestore.h"

#include <stdbool.h>

bool lr_scan_is_zero(const void *data, uint64_t bytes);

#endif
