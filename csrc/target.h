/*
 * A target: a userfaultfd and the address ranges that it serves from an image. Floor 3. Everything
 * below the session works on targets and does not know whose memory they are.
 *
 * A range goes idle → (changing) → active ⇄ suspended → gone. Pages are installed in active ranges
 * only, by a loader that holds its own lock meanwhile; whoever suspends a range then takes each
 * loader's lock once, and after that no install is under way (loader.h: lr_loader_quiesce).
 */
#ifndef LR_TARGET_H
#define LR_TARGET_H

#include <pthread.h>
#include <stdatomic.h>

#include "image.h"
#include "pageset.h"
#include "uffd.h"

enum lr_range_state {
	LR_RANGE_IDLE = 0,
	LR_RANGE_CHANGING, /* the session attaches it or lets it go: whoever made it so, alone */
	LR_RANGE_ACTIVE,
	LR_RANGE_SUSPENDED,
	LR_RANGE_GONE,
};

struct lr_range {
	_Atomic uint32_t state; /* enum lr_range_state */
	uint32_t number;        /* of the region in the image */
	uint64_t start;         /* address */
	uint64_t bytes;         /* whole host pages */
	bool is_owned;          /* mapped by the session, which unmaps it */
	bool is_entered;        /* in by_address, and under the same lock */
	struct lr_region_info region;
};

#define LR_ERRORS_KEPT 1024u

struct lr_target {
	const struct lr_image *image;
	struct lr_uffd uffd;
	uint32_t host_page; /* bytes */
	struct lr_pageset clusters;

	pthread_mutex_t
		lock; /* of the fields below; held for moments, never while a page is loaded */
	struct lr_range *ranges;      /* one a region, by its number */
	struct lr_range **by_address; /* those that are attached, ascending */
	uint32_t attached;
	uint64_t error_count;
	struct lr_load_error *errors; /* the first LR_ERRORS_KEPT */
};

int lr_target_open(struct lr_target *target, const struct lr_image *image);
void lr_target_close(struct lr_target *target);
/* The range that holds an address, or NULL. */
struct lr_range *lr_target_find(struct lr_target *target, uint64_t address);
/* Claim an idle range for this place and enter it into the look-up, changing: LR_ERR_BUSY where it
 * is not idle or another one is there. One that is suspended there makes room: its memory is gone.
 */
int lr_target_enter(struct lr_target *target, struct lr_range *range, uint64_t start,
		    uint64_t bytes);
/* Take it out. */
void lr_target_remove(struct lr_target *target, struct lr_range *range);
void lr_target_add_error(struct lr_target *target, const struct lr_load_error *error);

static inline enum lr_range_state lr_range_state(const struct lr_range *range)
{
	/* Acquire: partner of the release in lr_range_change, so that `start` is seen with the
	 * state. */
	return (enum lr_range_state)atomic_load_explicit(&range->state, memory_order_acquire);
}

/* Go from one state to another: false where it was not in the first, so that of two threads that
 * attach, suspend or detach a range one does it. */
static inline bool lr_range_change(struct lr_range *range, enum lr_range_state from,
				   enum lr_range_state to)
{
	uint32_t expected = from;

	/* Release: partner of the acquire in lr_range_state. Acquire: partner of the release of the
	 * change before, whose writes the thread that makes the next one builds on. */
	return atomic_compare_exchange_strong_explicit(&range->state, &expected, (uint32_t)to,
						       memory_order_acq_rel, memory_order_acquire);
}

#endif
