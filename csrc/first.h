/*
 * The clusters that a fill is to load before all else: a working set, in the order in which it is
 * wanted. Floor 6.
 *
 * Who takes them in that order beside a program that touches them in that order has each one just
 * when the program comes for it, and both decode the same. So where a touch is near, the next ones
 * are left to it, and those behind are taken first.
 *
 * A thread of its own has the kernel read the payloads ahead of whoever decodes them.
 */
#ifndef LR_FIRST_H
#define LR_FIRST_H

#include "pager.h"

struct lr_first {
	struct lr_pager *pager;
	uint64_t *clusters; /* owned */
	uint64_t count;
	_Atomic uint64_t next;  /* to be taken */
	_Atomic uint64_t again; /* the same, of those that were left out */
	struct lr_index_cache cache;
	pthread_t thread;
	bool is_reading;
	_Atomic bool is_stopping;
};

/* Takes a copy: the caller's memory may be lazy, and may change. LR_ERR_ARGUMENT where there is a
 * cluster that is not in the image. */
int lr_first_open(struct lr_first *first, struct lr_pager *pager, const uint64_t *clusters,
		  uint64_t count);
void lr_first_close(struct lr_first *first);
/* Begin to read ahead. What does not work out is left to whoever decodes. */
void lr_first_read_ahead(struct lr_first *first);
/* In a forked child, where the thread does not exist. */
void lr_first_abandon(struct lr_first *first);

/* The next one that is to be loaded; false when there are no more. Any thread. */
bool lr_first_take(struct lr_first *first, struct lr_range **ret_range, uint64_t *ret_cluster);

#endif
