/*
 * Loading ahead of touches: decodes clusters in the caller's thread, and hands them to the pager,
 * which puts them in place between faults. A few at a time are under way, so that both work. Floor
 * 6. A feed belongs to one thread at a time.
 */
#ifndef LR_FEED_H
#define LR_FEED_H

#include "pager.h"

#define LR_FEED_SLOTS      4u
#define LR_FEED_SLOTS_HUGE 2u

struct lr_feed {
	struct lr_feed *next_feed; /* for who keeps several */
	bool is_taken;
	bool installs; /* by itself, rather than by the pager: see lr_pager_do */
	struct lr_pager *pager;
	struct lr_decoder decoder;
	uint8_t *buffers; /* one mapping for all slots */
	uint32_t slot_count;
	uint32_t next; /* the slot to be used next, and the oldest that may be under way */
	struct lr_feed_slot {
		struct lr_job job;
		bool is_used;
		struct lr_cluster_info info;
		uint8_t *data;
		uint8_t *expanded;
		uint64_t offset; /* where host pages are larger: of the page that `data` is, */
		bool is_data;    /* or which is zeros */
		uint64_t clusters;
	} slots[LR_FEED_SLOTS];
};

int lr_feed_open(struct lr_feed *feed, struct lr_pager *pager);
void lr_feed_close(struct lr_feed *feed);

/* Begin to load [cluster, end) of a range: the first cluster and the zero ones behind it, or the
 * host page that it lies in where these are larger. *ret_run is how many were begun. Returns what
 * is known to have failed, with its *ret_problem: this one, which is fenced then, or an earlier
 * one. */
int lr_feed_load(struct lr_feed *feed, struct lr_range *range, uint64_t cluster, uint64_t end,
		 uint64_t *ret_run, struct lr_problem *ret_problem);
/* Wait for all that were begun; the result of the first that failed. */
int lr_feed_finish(struct lr_feed *feed, struct lr_problem *ret_problem);

#endif
