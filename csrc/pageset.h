/*
 * What the engine did with each cluster, and with each page, of a target. Floor 1. Memory is
 * reserved at open and costs something only where it was written.
 *
 * A page is missing until it is settled: the image's bytes were put there, or its owner gave it up
 * before they were. A page is settled once and for good. If it is missing later, its owner gave it
 * up, and it reads as zeros; the image's bytes never come a second time (docs/architecture.md,
 * "States of a page").
 *
 * Only the thread that installs pages writes; any thread may look. A state that is looked up saves
 * work and decides nothing, but in that thread.
 */
#ifndef LR_PAGESET_H
#define LR_PAGESET_H

#include <stdatomic.h>
#include <stdbool.h>

#include "error.h"

enum lr_cluster_state {
	LR_STATE_MISSING = 0, /* as far as its pages are not settled */
	LR_STATE_SETTLED = 2, /* all of them are */
	LR_STATE_FENCED = 3,  /* could not be loaded: what is not settled cannot be touched */
};

struct lr_pageset {
	_Atomic uint8_t *states;   /* one a cluster */
	_Atomic uint64_t *settled; /* a bit a page */
	uint64_t clusters;
	uint64_t pages; /* of the host, which may be smaller or larger than a cluster */
};

/* In memory of the caller's: zeroed, or with what is known already. */
void lr_pageset_open(struct lr_pageset *set, uint64_t clusters, uint64_t pages, void *states,
		     void *settled);
/* How much that takes. */
uint64_t lr_pageset_states_bytes(uint64_t clusters);
uint64_t lr_pageset_settled_bytes(uint64_t pages);

/* Pages count through all ranges: lr_target_page. */
void lr_pageset_settle(struct lr_pageset *set, uint64_t first_page, uint64_t pages);
/* The first page of [page, end) that is settled (or that is not); `end` where there is none. */
uint64_t lr_pageset_next(const struct lr_pageset *set, uint64_t page, uint64_t end,
			 bool is_settled);

/* How many pages of [page, end) are not settled. */
uint64_t lr_pageset_count_missing(const struct lr_pageset *set, uint64_t page, uint64_t end);

static inline bool lr_pageset_is_settled(const struct lr_pageset *set, uint64_t page)
{
	return atomic_load_explicit(&set->settled[page / 64], memory_order_relaxed) >> (page % 64)
	       & 1u;
}

static inline enum lr_cluster_state lr_pageset_get(const struct lr_pageset *set, uint64_t cluster)
{
	/* Relaxed: what a reader of the memory sees is ordered by the kernel's fault handling. */
	return (enum lr_cluster_state)atomic_load_explicit(&set->states[cluster],
							   memory_order_relaxed);
}

static inline void lr_pageset_put(struct lr_pageset *set, uint64_t cluster,
				  enum lr_cluster_state state)
{
	atomic_store_explicit(&set->states[cluster], (uint8_t)state, memory_order_relaxed);
}

#endif
