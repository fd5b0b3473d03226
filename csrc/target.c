#include "target.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "follow.h"
#include "pieces.h"
#include "reserve.h"

#define HUGETLB_PAGE_MIN (2u << 20)
/* Of 50 microseconds, and the timer's slack. The second where the pager gets to nothing. */
#define SETTLE_TRIES     200
#define SETTLE_TRIES_MAX 4000

/* Those of a region. Smaller ones than clusters count through its clusters, as these do through the
 * image: the last cluster's, too, are all there. */
static uint64_t pages_of(const struct lr_image *image, const struct lr_region_info *region,
			 uint32_t host_page)
{
	uint32_t cluster_size = image->info.cluster_size;

	if (host_page <= cluster_size)
		return region->cluster_count * (cluster_size / host_page);
	return region->length / host_page + (region->length % host_page != 0);
}

uint64_t lr_target_pages(const struct lr_image *image, uint32_t host_page)
{
	struct lr_region_info region;
	uint64_t pages = 0;

	for (uint32_t i = 0; i < image->info.region_count; i++) {
		lr_image_get_region(image, i, &region);
		pages += pages_of(image, &region, host_page);
	}
	return pages;
}

/* Never written: all of it is the one page of zeros. */
static int map_zeros(struct lr_target *target)
{
	void *zeros;

	if (target->host_page < HUGETLB_PAGE_MIN)
		return LR_OK;
	zeros = mmap(NULL, target->host_page, PROT_READ,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE, -1, 0);
	if (zeros == MAP_FAILED)
		return LR_ERR_NOMEM;
	target->zeros = zeros;
	return LR_OK;
}

/* All that is as large as the image, in one mapping: of it little is used, and it is had as it is
 * written. */
static int reserve_tables(struct lr_target *target)
{
	const struct lr_image *image = target->image;
	uint64_t clusters = image->info.cluster_count;
	uint64_t pages = lr_target_pages(image, target->host_page);
	uint64_t settled_bytes = lr_pageset_settled_bytes(pages);
	uint64_t errors_bytes = LR_ERRORS_KEPT * sizeof(*target->errors);
	uint8_t *at;

	/* What needs no alignment comes last. */
	target->reserved_bytes = settled_bytes + errors_bytes + lr_pieces_bytes(image)
				 + lr_pageset_states_bytes(clusters);
	target->reserved = at = lr_reserve(target->reserved_bytes);
	if (!at)
		return LR_ERR_NOMEM;
	target->errors = (struct lr_load_error *)(at + settled_bytes);
	lr_pieces_open(target, at + settled_bytes + errors_bytes);
	lr_pageset_open(&target->clusters, clusters, pages,
			at + settled_bytes + errors_bytes + lr_pieces_bytes(image), at);
	return LR_OK;
}

int lr_target_open(struct lr_target *target, const struct lr_image *image, uint32_t host_page)
{
	uint32_t count = image->info.region_count;
	uint64_t pages = 0;
	int code;

	memset(target, 0, sizeof(*target));
	target->image = image;
	target->uffd.fd = target->uffd.device = target->event_fd = -1;
	target->host_page = host_page ? host_page : (uint32_t)sysconf(_SC_PAGESIZE);
	pthread_mutex_init(&target->lock, NULL);
	pthread_mutex_init(&target->children_lock, NULL);
	code = map_zeros(target);
	target->is_huge = target->zeros || target->host_page > image->info.cluster_size;
	target->ranges = calloc(count ? count : 1, sizeof(*target->ranges));
	if (code == LR_OK)
		code = reserve_tables(target);
	if (code == LR_OK && !target->ranges)
		code = LR_ERR_NOMEM;
	if (code < 0) {
		lr_target_close(target);
		return code;
	}
	for (uint32_t i = 0; i < count; i++) {
		struct lr_range *range = &target->ranges[i];

		range->number = i;
		lr_image_get_region(image, i, &range->region);
		range->first_page = pages;
		pages += pages_of(image, &range->region, target->host_page);
	}
	return LR_OK;
}

void lr_target_close(struct lr_target *target)
{
	lr_uffd_close(&target->uffd);
	if (target->zeros)
		munmap((void *)target->zeros, target->host_page);
	if (target->together.settled)
		munmap((void *)target->together.settled,
		       lr_pageset_settled_bytes(target->clusters.pages));
	if (target->reserved)
		munmap(target->reserved, target->reserved_bytes);
	free(target->ranges);
	pthread_mutex_destroy(&target->lock);
	pthread_mutex_destroy(&target->children_lock);
}

bool lr_target_find(struct lr_target *target, uint64_t address, struct lr_piece *ret_piece)
{
	const struct lr_pieces *table;
	bool is_found;
	uint32_t slot;

	pthread_mutex_lock(&target->lock);
	table = lr_pieces_current(target);
	slot = lr_pieces_slot(table, address);
	is_found = slot < table->count && table->items[slot].start <= address;
	if (is_found)
		*ret_piece = table->items[slot];
	pthread_mutex_unlock(&target->lock);
	return is_found;
}

bool lr_target_next(struct lr_target *target, uint64_t address, struct lr_piece *ret_piece)
{
	const struct lr_pieces *table;
	uint32_t slot;
	bool is_there;

	pthread_mutex_lock(&target->lock);
	table = lr_pieces_current(target);
	slot = lr_pieces_slot(table, address);
	is_there = slot < table->count;
	if (is_there)
		*ret_piece = table->items[slot];
	pthread_mutex_unlock(&target->lock);
	return is_there;
}

/* The piece that has `offset`, where it lies as it did when the range was attached: its slot, found
 * quickly; else -1. */
static int64_t home_slot(const struct lr_pieces *table, const struct lr_range *range,
			 uint64_t offset)
{
	uint64_t address = range->start + offset;
	uint32_t slot = lr_pieces_slot(table, address);

	if (slot < table->count && table->items[slot].range == range
	    && table->items[slot].start <= address
	    && table->items[slot].start - table->items[slot].offset == range->start)
		return slot;
	return -1;
}

/* The piece with the least offset whose end is after `offset`, or -1. */
static int64_t offset_slot(const struct lr_pieces *table, const struct lr_range *range,
			   uint64_t offset)
{
	int64_t found = home_slot(table, range, offset);

	if (found >= 0)
		return found;
	for (uint32_t i = 0; i < table->count; i++) {
		const struct lr_piece *piece = &table->items[i];

		if (piece->range == range && piece->offset + (piece->end - piece->start) > offset
		    && (found < 0 || piece->offset < table->items[found].offset))
			found = i;
	}
	return found;
}

bool lr_target_find_offset(struct lr_target *target, struct lr_range *range, uint64_t offset,
			   struct lr_piece *ret_piece)
{
	const struct lr_pieces *table;
	int64_t slot;

	pthread_mutex_lock(&target->lock);
	table = lr_pieces_current(target);
	slot = offset_slot(table, range, offset);
	if (slot >= 0)
		*ret_piece = table->items[slot];
	pthread_mutex_unlock(&target->lock);
	return slot >= 0;
}

/* Make sure that nothing attached overlaps with [start, end). The lock is held. */
static bool make_room(struct lr_pieces *table, uint64_t start, uint64_t end)
{
	uint32_t first = lr_pieces_slot(table, start), last = first;

	while (last < table->count && table->items[last].start < end)
		if (lr_range_state(table->items[last++].range) != LR_RANGE_SUSPENDED)
			return false;
	while (last > first)
		lr_pieces_delete(table, --last);
	return true;
}

static int try_to_enter(struct lr_target *target, struct lr_range *range, uint64_t start,
			uint64_t bytes)
{
	struct lr_piece piece = {.start = start, .end = start + bytes, .range = range};
	int code = LR_ERR_BUSY;

	pthread_mutex_lock(&target->lock);
	if (lr_range_state(range) == LR_RANGE_IDLE
	    && make_room(lr_pieces_current(target), start, start + bytes)
	    && lr_range_change(range, LR_RANGE_IDLE, LR_RANGE_CHANGING)) {
		range->start = start;
		range->bytes = bytes;
		range->is_entered = true;
		/* Told of it is before it is active, which is waited for. */
		lr_follow_forget(target, start, start + bytes);
		target->attached++;
		code = LR_OK;
		if (!lr_pieces_insert(target, lr_pieces_current(target), &piece))
			target->is_lost = true;
	}
	pthread_mutex_unlock(&target->lock);
	return code;
}

int lr_target_enter(struct lr_target *target, struct lr_range *range, uint64_t start,
		    uint64_t bytes)
{
	struct timespec pause = {.tv_nsec = 1000000};
	int code = LR_ERR_BUSY;

	/* What another thread has just unmapped there may seem to be in the way, until its message
	 * is read. */
	for (int tries = 0;
	     tries < 100 && code == LR_ERR_BUSY && lr_range_state(range) == LR_RANGE_IDLE;
	     tries++) {
		if (tries > 0)
			nanosleep(&pause, NULL);
		lr_target_sync(target);
		code = try_to_enter(target, range, start, bytes);
	}
	return code;
}

int lr_target_add(struct lr_target *target, uint32_t region, uint64_t start, uint64_t bytes,
		  uint64_t offset, uint32_t untold)
{
	struct lr_pieces *table = lr_pieces_current(target);
	uint64_t page = target->host_page, length;
	struct lr_piece piece = {.start = start, .offset = offset, .untold = untold};

	if (region >= target->image->info.region_count)
		return LR_ERR_ARGUMENT;
	piece.range = &target->ranges[region];
	length = piece.range->region.length;
	/* A last page may be partial. */
	if (offset <= length && bytes == length - offset)
		bytes += (page - bytes % page) % page;
	piece.range->bytes = length + (page - length % page) % page;
	piece.end = start + bytes;
	if (start == 0 || start % page || bytes % page || offset % page || piece.end <= start
	    || offset > piece.range->bytes || bytes > piece.range->bytes - offset
	    || (table->count > 0 && table->items[table->count - 1].end > start)
	    || table->count == target->pieces_max)
		return LR_ERR_ARGUMENT;
	table->items[table->count++] = piece;
	return LR_OK;
}

static int by_offset(const void *a, const void *b)
{
	const struct lr_piece *left = a, *right = b;

	if (left->range != right->range)
		return left->range < right->range ? -1 : 1;
	return left->offset < right->offset ? -1 : left->offset > right->offset;
}

/* Make a range active that has these pieces, in order of offset. */
static int start_range(struct lr_target *target, const struct lr_piece *pieces, uint32_t count,
		       bool is_new)
{
	struct lr_range *range = pieces[0].range;
	uint64_t reached = 0;

	for (uint32_t i = 0; i <= count; i++) {
		uint64_t offset = i < count ? pieces[i].offset : range->bytes;

		if (offset < reached)
			return LR_ERR_ARGUMENT;
		if (is_new)
			lr_pageset_settle(&target->clusters, lr_target_page(target, range, reached),
					  (offset - reached) / target->host_page);
		if (i < count)
			reached = offset + (pieces[i].end - pieces[i].start);
	}
	/* Where its first page would be. */
	range->start = pieces[0].start - pieces[0].offset;
	range->is_entered = true;
	target->attached++;
	lr_range_change(range, LR_RANGE_IDLE, LR_RANGE_ACTIVE);
	return LR_OK;
}

int lr_target_finish_adding(struct lr_target *target, bool is_new)
{
	const struct lr_pieces *table = lr_pieces_current(target);
	struct lr_piece *sorted;
	int code = LR_OK;

	if (table->count == 0)
		return LR_OK;
	sorted = malloc(table->count * sizeof(*sorted));
	if (!sorted)
		return LR_ERR_NOMEM;
	memcpy(sorted, table->items, table->count * sizeof(*sorted));
	qsort(sorted, table->count, sizeof(*sorted), by_offset);
	for (uint32_t first = 0, end; first < table->count && code == LR_OK; first = end) {
		for (end = first; end < table->count && sorted[end].range == sorted[first].range;)
			end++;
		code = start_range(target, sorted + first, end - first, is_new);
	}
	free(sorted);
	return code;
}

bool lr_target_take(struct lr_target *target, struct lr_range *range, struct lr_piece *ret_piece)
{
	struct lr_pieces *table;
	int64_t slot = -1;

	pthread_mutex_lock(&target->lock);
	table = lr_pieces_current(target);
	if (range->is_entered)
		slot = offset_slot(table, range, 0);
	if (slot >= 0) {
		*ret_piece = table->items[slot];
		lr_pieces_delete(table, (uint32_t)slot);
	} else {
		/* One that is plain has left already, but for its pages. */
		target->attached -= range->is_entered;
		range->is_entered = false;
		target->plain_pages -= range->plain_pages;
		range->plain_pages = 0;
	}
	pthread_mutex_unlock(&target->lock);
	return slot >= 0;
}

void lr_target_add_error(struct lr_target *target, const struct lr_load_error *error)
{
	pthread_mutex_lock(&target->lock);
	if (target->error_count < LR_ERRORS_KEPT)
		target->errors[target->error_count] = *error;
	target->error_count++;
	pthread_mutex_unlock(&target->lock);
	lr_target_notify(target);
}

void lr_target_notify(const struct lr_target *target)
{
	uint64_t one = 1;

	while (target->event_fd >= 0 && write(target->event_fd, &one, sizeof(one)) < 0
	       && errno == EINTR)
		continue;
}

void lr_target_note_gone(struct lr_target *target)
{
	if (target->is_remote && !atomic_exchange(&target->is_gone, true))
		lr_target_notify(target);
}

void lr_target_sync(const struct lr_target *target)
{
	/* Sequentially consistent, as in the pager: whoever comes here was let go on by a message
	 * that was read, and the number was odd before. */
	uint32_t before = atomic_load(&target->reading);
	struct timespec pause = {.tv_nsec = 20000};

	for (int tries = 0; before % 2 && atomic_load(&target->reading) == before; tries++) {
		/* Asleep after a while: the pager must have a core even where this thread has
		 * real-time priority. */
		if (tries < 16)
			sched_yield();
		else
			nanosleep(&pause, NULL);
	}
}

void lr_target_settle_down(const struct lr_target *target, uint64_t page)
{
	struct timespec pause = {.tv_nsec = 50000};
	uint32_t before = atomic_load(&target->reading);

	/* Not for ever: threads that do nothing but give memory up may leave no such moment. What
	 * was told before this call is read by then, if the pager had a processor meanwhile: twice
	 * it has read all that there was. */
	for (int tries = 0;
	     (tries < SETTLE_TRIES
	      || (tries < SETTLE_TRIES_MAX && atomic_load(&target->reading) - before < 4))
	     && !lr_uffd_is_quiet(&target->uffd, page, target->host_page);
	     tries++)
		nanosleep(&pause, NULL);
	lr_target_sync(target);
}

bool lr_target_is_settled(const struct lr_target *target, const struct lr_range *range,
			  uint64_t cluster)
{
	uint64_t cluster_size = target->image->info.cluster_size;
	uint64_t begin = (cluster - range->region.first_cluster) * cluster_size;
	uint64_t end = begin + cluster_size < range->bytes ? begin + cluster_size : range->bytes;
	/* Past the page that the cluster ends in, where pages are larger. */
	uint64_t last = lr_target_page(target, range, end + target->host_page - 1);

	/* Relaxed: it only saves work. */
	return atomic_load_explicit(&range->is_unmapped, memory_order_relaxed)
	       || lr_pageset_get(&target->clusters, cluster) == LR_STATE_SETTLED
	       || lr_pageset_next(&target->clusters, lr_target_page(target, range, begin), last,
				  false)
			  >= last;
}
