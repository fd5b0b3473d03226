/*
 * "Make this cluster resident in this target": the only place that installs pages, for faults and
 * for loads ahead of them alike. Floor 4.
 *
 * One thread installs a target's pages (pager.h). So between its look at a page's state and the
 * page nothing can come: what an owner gives up, moves or unmaps is known only when that thread has
 * read of it, and until then the kernel refuses every page. Others decode (feed.h).
 *
 * The fault path allocates nothing and takes no lock but `busy` and, for moments, the target's.
 */
#ifndef LR_LOADER_H
#define LR_LOADER_H

#include "layout.h"
#include "stats.h"
#include "target.h"

/* One thread's means of loading a cluster. All memory is had at open. */
struct lr_hands {
	struct lr_decoder decoder;
	uint8_t *expanded; /* where host pages are larger than the image's */
	size_t expanded_bytes;
	uint64_t gathered; /* number of the host page that is there, and 1: huge.h */
};

struct lr_loader {
	struct lr_target *target;
	struct lr_hands hands; /* the pager's, for faults */
	/* Held while it installs. The fields below change under it, so that whoever was woken by a
	 * page sees it counted. */
	pthread_mutex_t busy;
	_Atomic uint64_t touched; /* the cluster that a fault brought last, and 1: a hint */
	uint64_t faults;
	uint64_t pages_copied; /* of the host; moved ones too */
	uint64_t pages_moved;
	uint64_t pages_zeroed;
	uint64_t clusters_decoded;
	uint64_t payload_bytes_read;
	uint64_t answers[2][LR_ACTION_WAKE + 1]; /* [is it a write][enum lr_action] */
	struct lr_histogram service;
};

int lr_loader_open(struct lr_loader *loader, struct lr_target *target);
void lr_loader_close(struct lr_loader *loader);

int lr_hands_open(struct lr_hands *hands, const struct lr_target *target);
/* Have the memory now, before they are used: at a memory limit nobody may wait for pages of his
 * own. */
void lr_hands_have(struct lr_hands *hands);
void lr_hands_close(struct lr_hands *hands);
/* Look up and decode what a fault at `offset` needs, if it needs anything, without `busy`:
 * lr_loader_fault with the same hands then has it ready. What goes wrong here goes wrong there. */
void lr_hands_prepare(struct lr_hands *hands, const struct lr_target *target,
		      const struct lr_range *range, uint64_t offset);

/* What a load did for the page that was touched. */
struct lr_outcome {
	enum lr_action action;
	uint64_t bytes;      /* installed for this fault, in all */
	uint64_t touched_ns; /* when the touched page was there */
};

/* Serve a fault at `offset` (in the range; a whole host page): the page's own run first, then the
 * rest of its cluster. A cluster that cannot be loaded is fenced and recorded. Call with `busy`
 * held and the range active. LR_OK, or what to try it again after: LR_LATER (install.h: messages
 * are to be read), LR_ERR_NOMEM. */
int lr_loader_fault(struct lr_loader *loader, struct lr_hands *hands, struct lr_range *range,
		    uint64_t offset, struct lr_outcome *ret_outcome);

/* Install all that is missing of a cluster that was decoded elsewhere, and of the clusters - 1
 * zero ones behind it. Same conditions; LR_LATER, or a failure. */
int lr_loader_install(struct lr_loader *loader, struct lr_range *range,
		      const struct lr_decoded *decoded, uint64_t clusters,
		      struct lr_problem *ret_problem);
/* Install what is not settled of [begin, end) of a range, from `data` that has the bytes for
 * `begin` and on, or zeros where it is NULL. Adds what was installed to *installed_bytes. Same
 * conditions and results; *ret_os_error belongs to LR_ERR_SYSTEM. */
int lr_loader_put(struct lr_loader *loader, struct lr_range *range, uint64_t begin, uint64_t end,
		  const uint8_t *data, uint64_t *installed_bytes, int *ret_os_error);
/* Note that the cluster which begins there is whole, if it is. */
void lr_loader_finish(struct lr_target *target, const struct lr_range *range,
		      uint64_t cluster_begin);
/* Fence a cluster that could not be decoded elsewhere: `decoded` is NULL where not even the index
 * has it. Where host pages are larger it is the page that it lies in. Same conditions; LR_OK,
 * LR_LATER or LR_ERR_NOMEM. */
int lr_loader_fence(struct lr_loader *loader, struct lr_range *range, uint64_t cluster,
		    const struct lr_decoded *decoded, const struct lr_problem *problem);

/* Zeros for a settled page that is missing, and for such ones behind it up to `end`: its owner gave
 * it up. Or it is there by now. Same conditions and results as lr_loader_fault. */
int lr_loader_give_zeros(struct lr_loader *loader, struct lr_range *range, uint64_t offset,
			 uint64_t end, struct lr_outcome *outcome);
/* A failure after which trying again does not help, and somebody is left who waits. */
bool lr_loader_must_fence(int code);
/* Count what a decoder did since it was asked last; under `busy`. */
void lr_loader_count(struct lr_loader *loader, struct lr_decoder *decoder);

/* Fence every page of a range that is not settled, for good: its userfaultfd goes. */
void lr_loader_fence_rest(struct lr_target *target, struct lr_range *range);

/* Wait until nothing is installed that was decided on before the call. */
void lr_loader_quiesce(struct lr_loader *loader);

#endif
