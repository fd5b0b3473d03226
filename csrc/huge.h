/*
 * Host pages that are larger than a cluster (lr_target.is_huge), as hugetlb's of 2 MiB are: one is
 * put in place whole, from all clusters that lie in it. Floor 4, above the loader and under its
 * rules.
 *
 * Where one of its clusters cannot be decoded all of the page is fenced, and the error names that
 * cluster. Past the end of its region it is zeros.
 */
#ifndef LR_HUGE_H
#define LR_HUGE_H

#include "loader.h"

/* The clusters of a host page: the first one's number, and how many there are. */
struct lr_huge_clusters {
	uint64_t first;
	uint64_t count;
};
struct lr_huge_clusters lr_huge_clusters(const struct lr_target *target,
					 const struct lr_range *range, uint64_t offset);

/* Whether there is anything but zeros in the host page at `offset`. True also where that cannot be
 * known: whoever loads it finds out why. */
bool lr_huge_has_data(struct lr_decoder *decoder, const struct lr_target *target,
		      const struct lr_range *range, uint64_t offset);

/* Bring the bytes of the host page at `offset` (whole host pages) of a range together, at `to`, if
 * it has any: without data nothing is written, nor decoded. */
int lr_huge_gather(struct lr_decoder *decoder, const struct lr_target *target,
		   const struct lr_range *range, uint64_t offset, uint8_t *to, bool *ret_is_data,
		   struct lr_problem *ret_problem);

/* As lr_loader_fault, for such pages. */
int lr_huge_fault(struct lr_loader *loader, struct lr_hands *hands, struct lr_range *range,
		  uint64_t offset, struct lr_outcome *ret_outcome);

/* Put a gathered page in place, or zeros where `data` is NULL, unless it is settled. Adds what was
 * installed. With `busy` held and the range active; LR_LATER, or a failure that fences nothing. */
int lr_huge_install(struct lr_loader *loader, struct lr_range *range, uint64_t offset,
		    const uint8_t *data, uint64_t *installed_bytes, struct lr_problem *ret_problem);

#endif
