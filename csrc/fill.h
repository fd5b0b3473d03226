/*
 * The background fill: loads a whole session by threads of the lowest priority, a chunk at a time
 * (chunks.h), after the clusters that are wanted first. Floor 7. It stops short of a memory limit,
 * because a limit that is hit kills. Besides what it loads it has at most LR_FILL_THREADS_MAX
 * times two stages, of 2 MiB each.
 */
#ifndef LR_FILL_H
#define LR_FILL_H

#include "chunks.h"
#include "feed.h"
#include "first.h"
#include "headroom.h"

#define LR_FILL_THREADS_MAX 16u
#define LR_FILL_STAGES      2u

struct lr_worker {
	struct lr_fill *fill;
	pthread_t thread;
	struct lr_feed feed; /* whose decoder is for chunks too */
	struct lr_stage stages[LR_FILL_STAGES];
	struct lr_chunk chunks[LR_FILL_STAGES]; /* what they have */
	uint32_t next;                          /* stage */
};

struct lr_fill {
	struct lr_pager *pager;
	/* Gives a range that is complete back to its owner, in the pager; LR_ERR_BUSY: ask again.
	 */
	int (*release)(struct lr_loader *loader, struct lr_job *job);
	struct lr_headroom headroom;
	struct lr_chunks chunks;
	uint32_t worker_count;
	uint32_t started_count; /* of them, threads */
	struct lr_worker *workers;
	bool is_started;
	bool first_only;
	bool is_awaited;
	_Atomic bool is_stopping;
	_Atomic int32_t code;        /* the first failure that ends it all */
	_Atomic uint32_t left;       /* workers at work */
	_Atomic uint32_t left_first; /* and at `first` */
	/* enum lr_fill_state; who waits, waits for its change */
	_Atomic uint32_t state;
	_Atomic uint32_t first_state; /* the same for `first` */
	struct lr_first first;
};

/* LR_ERR_BUSY where it was started before. `release` may be NULL. */
int lr_fill_start(struct lr_fill *fill, struct lr_pager *pager,
		  const struct lr_fill_options *options,
		  int (*release)(struct lr_loader *loader, struct lr_job *job));
/* As lr_session_wait, for one of its states. */
int lr_fill_wait(_Atomic uint32_t *state, int64_t timeout_ns);
/* End it where it is. */
void lr_fill_stop(struct lr_fill *fill);
/* In a forked child, where the threads do not exist: there is no fill. */
void lr_fill_abandon(struct lr_fill *fill);

#endif
