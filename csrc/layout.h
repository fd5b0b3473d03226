/*
 * How the pages of a decoded cluster lie in memory: runs that are all data or all zeros. Floor 3.
 */
#ifndef LR_LAYOUT_H
#define LR_LAYOUT_H

#include "image.h"

/* A cluster that was looked up and, where it has data, decoded. */
struct lr_decoded {
	const struct lr_cluster_info *info;
	const uint8_t *data;     /* its data pages, one after another */
	const uint8_t *expanded; /* where host pages are larger: the cluster as it will lie */
	uint32_t page_size;      /* of the image */
	uint32_t host_page;
};

/* A stretch whose units are all data, or all zeros. Offsets are in the cluster. */
struct lr_run {
	bool is_data;
	uint64_t begin;
	uint64_t end;
};

/* A unit is what is installed at the least: a page of the image or of the host, whichever is
 * larger. */
static inline uint64_t lr_layout_unit(const struct lr_decoded *decoded)
{
	return decoded->host_page > decoded->page_size ? decoded->host_page : decoded->page_size;
}

/* The longest run around `offset`, within the cluster's `bytes`. */
struct lr_run lr_layout_run(const struct lr_decoded *decoded, uint64_t offset, uint64_t bytes);
/* Where the decoded bytes for a data unit's `offset` are. */
const uint8_t *lr_layout_data(const struct lr_decoded *decoded, uint64_t offset);
/* Lay a cluster's packed data pages out as they will lie in memory. */
void lr_layout_expand(const struct lr_cluster_info *info, const uint8_t *data, uint32_t page_size,
		      uint8_t *ret_expanded, uint32_t cluster_size);

#endif
