/*
 * "Make this cluster resident in this target": the only place that installs pages, for faults and
 * for loads ahead of them alike. Floor 4.
 *
 * Each thread that loads has a struct lr_loader of its own: buffers, decoder, counters, and a lock
 * that it holds while it installs. The fault path allocates nothing and takes no lock but its own
 * loader's and, for moments, the target's.
 */
#ifndef LR_LOADER_H
#define LR_LOADER_H

#include "stats.h"
#include "target.h"

struct lr_loader {
	struct lr_target *target;
	struct lr_decoder decoder;
	pthread_mutex_t busy;
	uint8_t *expanded; /* only where host pages are larger than the image's: a cluster as it
			      will lie */
	bool is_demand;    /* somebody waits for what it loads */
	uint64_t faults;
	uint64_t pages_copied; /* of the host */
	uint64_t pages_zeroed;
	struct lr_histogram service;
};

/* `is_demand`: it serves faults, and never gives up for want of memory. */
int lr_loader_open(struct lr_loader *loader, struct lr_target *target, bool is_demand);
void lr_loader_close(struct lr_loader *loader);

/* What a load did for the page that was touched. */
struct lr_outcome {
	enum lr_action action;
	uint64_t bytes;      /* installed for this fault, in all */
	uint64_t touched_ns; /* when the touched page was there */
};

/* Serve a fault at `offset` (in the range; a whole host page): the page's own run first, then the
 * rest of its cluster. A cluster that cannot be loaded is fenced and recorded. Call with `busy`
 * held and the range active. */
void lr_loader_fault(struct lr_loader *loader, struct lr_range *range, uint64_t offset,
		     struct lr_outcome *ret_outcome);

/* Load all of a cluster, zero pages too; *ret_run is how many clusters from it on are done now.
 * Same conditions. */
int lr_loader_load(struct lr_loader *loader, struct lr_range *range, uint64_t cluster,
		   uint64_t max_clusters, uint64_t *ret_run, struct lr_problem *ret_problem);

/* Wait until this loader installs nothing that it decided on before the call. */
void lr_loader_quiesce(struct lr_loader *loader);

#endif
