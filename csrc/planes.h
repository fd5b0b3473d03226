/*
 * Byte planes: numbers with their bytes grouped, all first bytes, then all second bytes, and so on.
 * Floor 1: no state; any thread. lr_planes_split and lr_planes_join are in lazyrestore.h.
 */
#ifndef LR_PLANES_H
#define LR_PLANES_H

#include <stdbool.h>
#include <stdint.h>

/* Whether numbers may be of so many bytes. */
static inline bool lr_planes_is_width(uint32_t width_bytes)
{
	return width_bytes == 2 || width_bytes == 4 || width_bytes == 8;
}

#endif
