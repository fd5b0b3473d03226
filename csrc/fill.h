/*
 * The background fill: loads a whole session by one thread of the lowest priority. Floor 7. It
 * stops short of a memory limit, because a limit that is hit kills.
 */
#ifndef LR_FILL_H
#define LR_FILL_H

#include "feed.h"
#include "headroom.h"

struct lr_fill {
	struct lr_pager *pager;
	struct lr_feed feed;
	struct lr_headroom headroom;
	pthread_t thread;
	bool is_started;
	_Atomic bool is_stopping;
	/* enum lr_fill_state; who waits, waits for its change */
	_Atomic uint32_t state;
	_Atomic uint32_t first_state; /* the same for `first` */
	uint64_t *first;
	uint64_t first_count;
	bool first_only;
};

/* LR_ERR_BUSY where it was started before. */
int lr_fill_start(struct lr_fill *fill, struct lr_pager *pager,
		  const struct lr_fill_options *options);
/* As lr_session_wait, for one of its states. */
int lr_fill_wait(_Atomic uint32_t *state, int64_t timeout_ns);
/* End it where it is. */
void lr_fill_stop(struct lr_fill *fill);
/* In a forked child, where the thread does not exist: there is no fill. */
void lr_fill_abandon(struct lr_fill *fill);

#endif
