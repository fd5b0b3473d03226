/*
 * A target: a userfaultfd and the address ranges that it serves from an image. Floor 3. Everything
 * below the session works on targets and does not know whose memory they are.
 *
 * A range is a region's memory. It goes idle → changing → active ⇄ suspended → gone. Pages are
 * installed in active ranges only, by the pager, which holds its lock meanwhile; whoever suspends a
 * range then takes that lock once, and after that no install is under way (loader.h:
 * lr_loader_quiesce).
 *
 * A range lies in one piece where it was attached, until its owner unmaps or moves part of it.
 */
#ifndef LR_TARGET_H
#define LR_TARGET_H

#include <pthread.h>
#include <stdatomic.h>

#include "image.h"
#include "kept.h"
#include "pageset.h"
#include "record.h"
#include "uffd.h"

enum lr_range_state {
	LR_RANGE_IDLE = 0,
	LR_RANGE_CHANGING, /* being attached: by whoever made it so, alone, and one at a time */
	LR_RANGE_ACTIVE,
	LR_RANGE_SUSPENDED,
	LR_RANGE_CLOSING, /* its session ends */
	LR_RANGE_PLAIN,   /* all was brought: ordinary memory, and its owner's alone */
	LR_RANGE_GONE,
};

struct lr_range {
	_Atomic uint32_t state;   /* enum lr_range_state */
	uint32_t number;          /* of the region in the image */
	uint64_t start;           /* address where it was attached */
	uint64_t bytes;           /* whole host pages */
	uint64_t first_page;      /* its first host page's number, counted through all ranges */
	bool is_owned;            /* mapped by the session, which unmaps it */
	_Atomic bool is_unmapped; /* all of it, in one piece: there is nothing to load */
	_Atomic bool is_whole;    /* what is missing of it is zeros: nothing is to be fenced */
	bool is_entered;          /* it may have pieces; under the target's lock */
	uint64_t plain_pages;     /* that it had when it became plain; under the target's lock */
	struct lr_region_info region;
};

/* Part of a range, as it lies in memory now. */
struct lr_piece {
	uint64_t start; /* address */
	uint64_t end;
	uint64_t offset; /* of `start`, in the range */
	struct lr_range *range;
	uint32_t untold; /* unmappings of what was here before, of which is still to be read */
};

/* Pieces by address. A forked child looks at a copy that was made while the pager worked: it can
 * trust a table whose versions agree. */
struct lr_pieces {
	_Atomic uint32_t version; /* changed before an edit */
	uint32_t count;
	struct lr_piece *items;
	_Atomic uint32_t version_after; /* and after it */
};

/* together.h */
#define LR_TOGETHER_CHANGES 64u
#define LR_TOGETHER_PIECES  256u

struct lr_together {
	uint32_t count;
	uint32_t was_count;
	uint64_t held_until_ns; /* the children, at most */
	/* The bits that pages had which were lost, at their places; or NULL. */
	_Atomic uint64_t *settled;
	struct lr_uffd_message changes[LR_TOGETHER_CHANGES];
	/* What they took away from where it was. */
	struct lr_was {
		uint32_t change;
		bool is_lost; /* else moved */
		bool is_back; /* in the child that was told of last */
		struct lr_kept_piece piece;
	} was[LR_TOGETHER_PIECES];
};

#define LR_ERRORS_KEPT  1024u
#define LR_UNMAPPED_MAX 64u

struct lr_target {
	const struct lr_image *image;
	struct lr_uffd uffd;
	uint32_t host_page;   /* bytes */
	bool is_huge;         /* larger than a cluster, or hugetlb's: huge.h */
	const uint8_t *zeros; /* a page's, where the kernel has no zero page: hugetlb. Else NULL */
	uint32_t pieces_max;  /* room in each table */
	uint32_t on_error;    /* enum lr_on_error */
	uint32_t granularity; /* enum lr_granularity */
	_Atomic bool is_shared; /* others install too: inline.h, lr_pager_do */
	/* Another process's memory: nothing can be done with it but by its userfaultfd. */
	bool is_remote;
	int32_t peer;           /* its number where that is known, else 0 */
	bool are_threads_known; /* their numbers mean the same here */
	int event_fd; /* written to when a load fails, or the peer's memory is gone; or -1 */
	_Atomic bool is_gone; /* there is no such address space any more */
	struct lr_kept *kept; /* where what is known of a peer outlives this process; or NULL */
	bool is_zero_outside; /* LR_SERVE_ZERO_OUTSIDE */
	bool takes_children;  /* LR_SERVE_CHILDREN: children.h */
	/* Its maker is still at it: what is not there is not there yet. */
	_Atomic bool is_mapping;
	struct lr_pageset clusters;
	struct lr_record *record; /* of what is touched; NULL: none */
	/* Odd while the pager reads messages and does what they say: lr_target_sync. */
	_Atomic uint32_t reading;
	/* A fork() is under way: the pager puts off reading, for a while (pager.c). */
	_Atomic bool is_forking;
	/* witness.c */
	struct lr_witness_record *witness;
	_Atomic bool is_witnessed;
	uint32_t forks; /* number of the last one; never 0 */

	/* Of `children`, and of what the state has of them: held for moments. */
	pthread_mutex_t children_lock;
	struct lr_kept_child children[LR_KEPT_CHILDREN_MAX];
	bool is_taken[LR_KEPT_CHILDREN_MAX]; /* handed out, and not said to be kept */
	bool is_held[LR_KEPT_CHILDREN_MAX];  /* not to be handed out yet */
	struct lr_together together;         /* the pager's */

	pthread_mutex_t
		lock; /* of the fields below; held for moments, never while a page is loaded */
	struct lr_range *ranges; /* one a region, by its number */
	/* What messages change is edited in the table that is not in use. */
	struct lr_pieces tables[2];
	_Atomic uint32_t current;
	uint32_t attached;       /* ranges */
	uint64_t plain_pages;    /* of those that are plain, and of such before a takeover */
	bool is_lost;            /* there were more pieces than room: not all are known */
	_Atomic bool is_advised; /* a fork has just kept pieces from children: see apply_unmap */
	/* Places of which an UNMAP is still to be read: follow.c. */
	struct lr_unmapped {
		uint64_t start;
		uint64_t end;
		uint32_t untold; /* how many */
	} unmapped[LR_UNMAPPED_MAX];
	uint32_t unmapped_count;
	uint64_t error_count;
	uint8_t *reserved; /* for `tables`, `clusters` and `errors` */
	uint64_t reserved_bytes;
	struct lr_load_error *errors; /* the first LR_ERRORS_KEPT */
};

/* host_page: 0 for this machine's. From 2 MiB on it is memory of hugetlb. */
int lr_target_open(struct lr_target *target, const struct lr_image *image, uint32_t host_page);
void lr_target_close(struct lr_target *target);

/* What lies at an address: false where nothing of this target does. */
bool lr_target_find(struct lr_target *target, uint64_t address, struct lr_piece *ret_piece);
/* The first piece whose end lies behind an address. */
bool lr_target_next(struct lr_target *target, uint64_t address, struct lr_piece *ret_piece);
/* The piece that has `offset` of a range in it, or else the one that has the next offset after it:
 * false where there is none. */
bool lr_target_find_offset(struct lr_target *target, struct lr_range *range, uint64_t offset,
			   struct lr_piece *ret_piece);
/* Claim an idle range for this place and enter it into the look-up, changing: LR_ERR_BUSY where it
 * is not idle or another one is there. One that is suspended there makes room: its memory is gone.
 */
int lr_target_enter(struct lr_target *target, struct lr_range *range, uint64_t start,
		    uint64_t bytes);
/* Add a piece of a region as it lies in a peer, behind all others there; `bytes` may end with the
 * region. Before anyone works on the target. LR_ERR_ARGUMENT where it cannot be. */
int lr_target_add(struct lr_target *target, uint32_t region, uint64_t start, uint64_t bytes,
		  uint64_t offset, uint32_t untold);
/* What was added so is whole: LR_ERR_ARGUMENT where a part of a region is in two pieces. What is in
 * none counts as given up if `is_new`. */
int lr_target_finish_adding(struct lr_target *target, bool is_new);
/* Take one of its pieces out: false when it has none left. */
bool lr_target_take(struct lr_target *target, struct lr_range *range, struct lr_piece *ret_piece);
void lr_target_add_error(struct lr_target *target, const struct lr_load_error *error);
/* Write to its event_fd. */
void lr_target_notify(const struct lr_target *target);
/* There is nobody left to serve. */
void lr_target_note_gone(struct lr_target *target);

/* Wait until what happened to the memory before this call is known: for a moment, and never for a
 * load. */
void lr_target_sync(const struct lr_target *target);
/* Wait until nothing of that kind is under way either, or for some 20 ms (400 where the pager gets
 * to nothing meanwhile): it must be at work, and this may be for a load. `page` is an address in a
 * registered range. */
void lr_target_settle_down(const struct lr_target *target, uint64_t page);

/* Nothing of a cluster is left to load within its range: its pages came, or were given up. */
bool lr_target_is_settled(const struct lr_target *target, const struct lr_range *range,
			  uint64_t cluster);

/* How many host pages the regions of an image take, each begun anew. */
uint64_t lr_target_pages(const struct lr_image *image, uint32_t host_page);

/* Number of the host page that has `offset` of a range, counted through all ranges. */
static inline uint64_t lr_target_page(const struct lr_target *target, const struct lr_range *range,
				      uint64_t offset)
{
	return range->first_page + offset / target->host_page;
}

/* Number of the cluster that has it. */
static inline uint64_t lr_target_cluster(const struct lr_target *target,
					 const struct lr_range *range, uint64_t offset)
{
	return range->region.first_cluster + offset / target->image->info.cluster_size;
}

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
