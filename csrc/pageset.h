/*
 * The state of each cluster of a target. Floor 1. States are single bytes, changed atomically by
 * any thread; memory is reserved at open and costs something only where clusters were loaded.
 *
 *     missing ──load──▶ present
 *        └────fail────▶ fenced
 *
 * A state is what the engine did, not a lock: two loaders may load the same cluster, and the kernel
 * decides which COPY comes first (the other gets EEXIST and counts the page as present).
 */
#ifndef LR_PAGESET_H
#define LR_PAGESET_H

#include <stdatomic.h>

#include "error.h"

enum lr_cluster_state { LR_STATE_MISSING = 0, LR_STATE_PRESENT = 1, LR_STATE_FENCED = 2 };

struct lr_pageset {
	_Atomic uint8_t *states;
	uint64_t clusters;
};

int lr_pageset_open(struct lr_pageset *set, uint64_t clusters);
void lr_pageset_close(struct lr_pageset *set);

/* Relaxed: the state only saves work. What a reader of the memory sees is ordered by the kernel's
 * own fault handling. */
static inline enum lr_cluster_state lr_pageset_get(const struct lr_pageset *set, uint64_t cluster)
{
	return (enum lr_cluster_state)atomic_load_explicit(&set->states[cluster],
							   memory_order_relaxed);
}

static inline void lr_pageset_put(struct lr_pageset *set, uint64_t cluster,
				  enum lr_cluster_state state)
{
	atomic_store_explicit(&set->states[cluster], (uint8_t)state, memory_order_relaxed);
}

#endif
