#include "elsewhere.h"

#include <errno.h>

#include "install.h"
#include "pieces.h"

/* How much at a time. */
#define ZEROS_MAX (64u << 10)

/* Up to where from `page` on there is nothing but what is no region's. */
static uint64_t end_of(struct lr_target *target, uint64_t page, uint64_t limit)
{
	const struct lr_pieces *table;
	uint32_t slot;

	if (limit > page + ZEROS_MAX)
		limit = page + ZEROS_MAX;
	pthread_mutex_lock(&target->lock);
	table = lr_pieces_current(target);
	slot = lr_pieces_slot(table, page);
	if (slot < table->count && table->items[slot].start < limit)
		limit = table->items[slot].start;
	pthread_mutex_unlock(&target->lock);
	return limit;
}

/* All of it was brought, and its memory given back, since the fault. */
static bool was_given_back(const struct lr_target *target, uint64_t page)
{
	for (uint32_t i = 0; i < target->image->info.region_count; i++) {
		const struct lr_range *range = &target->ranges[i];

		if (lr_range_state(range) == LR_RANGE_PLAIN && page >= range->start
		    && page - range->start < range->bytes)
			return true;
	}
	return false;
}

bool lr_elsewhere_give(struct lr_target *target, uint64_t page, uint64_t limit, bool *ret_is_late)
{
	struct lr_piece unknown = {.start = page, .end = page + target->host_page}, piece;
	int64_t done;

	*ret_is_late = false;
	if (was_given_back(target, page) || lr_target_find(target, page, &piece))
		return true;
	if (lr_uffd_register(&target->uffd, page, target->host_page, NULL) < 0)
		return false;
	if (target->is_lost) {
		lr_install_fence(target, &unknown, page, target->host_page);
		return true;
	}
	/* Not over what is there, which may be a fence: the touch is repeated, and sees it. */
	done = lr_uffd_zeropage(&target->uffd, page, end_of(target, page, limit) - page);
	*ret_is_late = done < 0 && done != -EEXIST;
	return true;
}
