#include "target.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int lr_target_open(struct lr_target *target, const struct lr_image *image)
{
	uint32_t count = image->info.region_count;
	int code;

	memset(target, 0, sizeof(*target));
	target->image = image;
	target->uffd.fd = -1;
	target->host_page = (uint32_t)sysconf(_SC_PAGESIZE);
	pthread_mutex_init(&target->lock, NULL);
	target->ranges = calloc(count ? count : 1, sizeof(*target->ranges));
	target->by_address = calloc(count ? count : 1, sizeof(struct lr_range *));
	target->errors = calloc(LR_ERRORS_KEPT, sizeof(*target->errors));
	code = lr_pageset_open(&target->clusters, image->info.cluster_count);
	if (code == LR_OK && (!target->ranges || !target->by_address || !target->errors))
		code = LR_ERR_NOMEM;
	if (code < 0) {
		lr_target_close(target);
		return code;
	}
	for (uint32_t i = 0; i < count; i++) {
		target->ranges[i].number = i;
		lr_image_get_region(image, i, &target->ranges[i].region);
	}
	return LR_OK;
}

void lr_target_close(struct lr_target *target)
{
	lr_uffd_close(&target->uffd);
	lr_pageset_close(&target->clusters);
	free(target->ranges);
	free(target->by_address);
	free(target->errors);
	pthread_mutex_destroy(&target->lock);
}

/* Where in by_address a range that holds `address` would be: the first whose end lies behind it.
 * The lock is held. */
static uint32_t slot_of(const struct lr_target *target, uint64_t address)
{
	uint32_t low = 0, high = target->attached;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		const struct lr_range *range = target->by_address[middle];

		if (range->start + range->bytes <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct lr_range *lr_target_find(struct lr_target *target, uint64_t address)
{
	struct lr_range *found = NULL;
	uint32_t slot;

	pthread_mutex_lock(&target->lock);
	slot = slot_of(target, address);
	if (slot < target->attached && target->by_address[slot]->start <= address)
		found = target->by_address[slot];
	pthread_mutex_unlock(&target->lock);
	return found;
}

/* The lock is held. */
static void take_out(struct lr_target *target, uint32_t slot)
{
	target->by_address[slot]->is_entered = false;
	target->attached--;
	memmove(target->by_address + slot, target->by_address + slot + 1,
		(target->attached - slot) * sizeof(struct lr_range *));
}

/* Make sure that nothing attached overlaps with [start, end). The lock is held. */
static bool make_room(struct lr_target *target, uint64_t start, uint64_t end)
{
	uint32_t first = slot_of(target, start), last = first;

	while (last < target->attached && target->by_address[last]->start < end)
		if (lr_range_state(target->by_address[last++]) != LR_RANGE_SUSPENDED)
			return false;
	while (last > first)
		take_out(target, --last);
	return true;
}

int lr_target_enter(struct lr_target *target, struct lr_range *range, uint64_t start,
		    uint64_t bytes)
{
	int code = LR_ERR_BUSY;
	uint32_t slot;

	pthread_mutex_lock(&target->lock);
	if (lr_range_state(range) == LR_RANGE_IDLE && make_room(target, start, start + bytes)
	    && lr_range_change(range, LR_RANGE_IDLE, LR_RANGE_CHANGING)) {
		range->start = start;
		range->bytes = bytes;
		range->is_entered = true;
		slot = slot_of(target, start);
		memmove(target->by_address + slot + 1, target->by_address + slot,
			(target->attached - slot) * sizeof(struct lr_range *));
		target->by_address[slot] = range;
		target->attached++;
		code = LR_OK;
	}
	pthread_mutex_unlock(&target->lock);
	return code;
}

void lr_target_remove(struct lr_target *target, struct lr_range *range)
{
	pthread_mutex_lock(&target->lock);
	/* By its address: searching all would make closing many regions quadratic. */
	if (range->is_entered)
		take_out(target, slot_of(target, range->start));
	pthread_mutex_unlock(&target->lock);
}

void lr_target_add_error(struct lr_target *target, const struct lr_load_error *error)
{
	pthread_mutex_lock(&target->lock);
	if (target->error_count < LR_ERRORS_KEPT)
		target->errors[target->error_count] = *error;
	target->error_count++;
	pthread_mutex_unlock(&target->lock);
}
