#include "first.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "thread.h"

/* How far from a cluster the one that was touched last is near, either way. */
#define NEAR 4u
/* So many are left to who touches them. */
#define JUMP 16u
/* How many clusters may be read ahead. */
#define AHEAD_MAX 512u
/* How many are looked at before it is believed that all are in memory. */
#define PROBES 16u
/* What is asked for at once, where it lies together; what may lie between. */
#define READ_BYTES    (512u << 10)
#define GAP_BYTES     4096u
#define READ_PAUSE_NS 1000000

/* Where host pages are larger, one cluster brings its whole page: two workers would both do it.
 * What there is no memory to find out is done twice. */
static void keep_one_a_page(struct lr_first *first)
{
	const struct lr_target *target = first->pager->target;
	uint64_t cluster_size = target->image->info.cluster_size, kept = 0;
	uint8_t *is_kept = calloc(target->clusters.pages ? target->clusters.pages : 1, 1);

	for (uint64_t i = 0; i < first->count && is_kept; i++) {
		uint64_t cluster = first->clusters[i], page;
		int64_t region = lr_image_region_of_cluster(target->image, cluster);
		const struct lr_range *range = &target->ranges[region < 0 ? 0 : region];

		if (region < 0)
			continue;
		page = lr_target_page(target, range,
				      (cluster - range->region.first_cluster) * cluster_size);
		if (!is_kept[page])
			first->clusters[kept++] = cluster;
		is_kept[page] = 1;
	}
	if (is_kept)
		first->count = kept;
	free(is_kept);
}

int lr_first_open(struct lr_first *first, struct lr_pager *pager, const uint64_t *clusters,
		  uint64_t count)
{
	uint64_t cluster_count = pager->target->image->info.cluster_count;

	memset(first, 0, sizeof(*first));
	first->pager = pager;
	if (count == 0)
		return LR_OK;
	if (!clusters || count > cluster_count)
		return LR_ERR_ARGUMENT;
	first->clusters = malloc(count * sizeof(*clusters));
	if (!first->clusters)
		return LR_ERR_NOMEM;
	memcpy(first->clusters, clusters, count * sizeof(*clusters));
	first->count = count;
	for (uint64_t i = 0; i < count; i++)
		if (first->clusters[i] >= cluster_count) {
			lr_first_close(first);
			return LR_ERR_ARGUMENT;
		}
	if (pager->target->is_huge)
		keep_one_a_page(first);
	return LR_OK;
}

/* ---- Reading ahead ---- */

/* Where a cluster's payload is: false where that leads nowhere. It may have none. */
static bool find_payload(struct lr_first *first, uint64_t cluster, struct lr_cluster_info *ret_info)
{
	const struct lr_image *image = first->pager->target->image;
	int64_t region = lr_image_region_of_cluster(image, cluster);
	uint32_t pages;

	if (region < 0)
		return false;
	pages = lr_image_pages_in_cluster(image, &first->pager->target->ranges[region].region,
					  cluster);
	return lr_index_find(&image->index, &first->cache, cluster, pages, ret_info, NULL) == LR_OK;
}

static bool is_in_memory(struct lr_first *first)
{
	const struct lr_source *source = &first->pager->target->image->source;
	struct lr_cluster_info info;

	for (uint64_t i = 0; i < first->count && i < PROBES; i++)
		if (find_payload(first, first->clusters[i], &info) && info.payload_bytes > 0
		    && !lr_source_is_cached(source, info.payload_offset, info.payload_bytes))
			return false;
	return true;
}

/* Not further than they are used up; false where it is to end. */
static bool wait_for_turn(struct lr_first *first, uint64_t i)
{
	struct timespec pause = {.tv_nsec = READ_PAUSE_NS};

	while (i > atomic_load_explicit(&first->next, memory_order_relaxed) + AHEAD_MAX
	       && !atomic_load_explicit(&first->is_stopping, memory_order_relaxed))
		nanosleep(&pause, NULL);
	return !atomic_load_explicit(&first->is_stopping, memory_order_relaxed);
}

/* Payloads that lie together are asked for together. */
static void *run(void *argument)
{
	struct lr_first *first = argument;
	const struct lr_source *source = &first->pager->target->image->source;
	uint64_t begin = 0, end = 0;
	bool goes_on = !is_in_memory(first);

	for (uint64_t i = 0; goes_on && i < first->count; i++) {
		struct lr_cluster_info info;

		if (!wait_for_turn(first, i) || !find_payload(first, first->clusters[i], &info))
			break;
		if (info.payload_bytes == 0)
			continue;
		if (info.payload_offset < end || info.payload_offset - end > GAP_BYTES
		    || end - begin >= READ_BYTES) {
			goes_on = end == begin || lr_source_advise(source, begin, end - begin);
			begin = info.payload_offset;
		}
		end = info.payload_offset + info.payload_bytes;
	}
	if (end > begin)
		lr_source_advise(source, begin, end - begin);
	return NULL;
}

void lr_first_read_ahead(struct lr_first *first)
{
	if (first->count == 0
	    || lr_index_cache_open(&first->cache, &first->pager->target->image->index) < 0)
		return;
	first->is_reading = lr_thread_start(&first->thread, run, first) == 0;
	if (!first->is_reading)
		lr_index_cache_close(&first->cache);
}

void lr_first_abandon(struct lr_first *first)
{
	if (first->is_reading)
		lr_index_cache_close(&first->cache);
	first->is_reading = false;
	free(first->clusters);
	first->clusters = NULL;
	first->count = 0;
}

void lr_first_close(struct lr_first *first)
{
	if (first->is_reading) {
		atomic_store_explicit(&first->is_stopping, true, memory_order_relaxed);
		pthread_join(first->thread, NULL);
	}
	lr_first_abandon(first);
}

/* ---- Taking ---- */

/* The range of a cluster that is to be loaded, or NULL. */
static struct lr_range *wanted(struct lr_first *first, uint64_t cluster)
{
	struct lr_target *target = first->pager->target;
	int64_t region = lr_image_region_of_cluster(target->image, cluster);
	struct lr_range *range = &target->ranges[region < 0 ? 0 : region];

	if (region < 0 || lr_range_state(range) != LR_RANGE_ACTIVE
	    || lr_target_is_settled(target, range, cluster))
		return NULL;
	return range;
}

/* Number of the one behind what is left to somebody who touches clusters near number i; 0: nobody
 * does. */
static uint64_t jump_from(const struct lr_first *first, uint64_t i)
{
	/* A hint: what it says may be over. */
	uint64_t touched =
		atomic_load_explicit(&first->pager->loader.touched, memory_order_relaxed);
	uint64_t from = i < NEAR ? 0 : i - NEAR;
	uint64_t end = first->count - i < NEAR + 1 ? first->count : i + NEAR + 1;

	for (uint64_t near = from; touched > 0 && near < end; near++)
		if (first->clusters[near] == touched - 1)
			return near + JUMP;
	return 0;
}

bool lr_first_take(struct lr_first *first, struct lr_range **ret_range, uint64_t *ret_cluster)
{
	for (;;) {
		uint64_t i = atomic_fetch_add_explicit(&first->next, 1, memory_order_relaxed), jump;
		uint64_t expected = i + 1;

		if (i >= first->count)
			break;
		*ret_cluster = first->clusters[i];
		*ret_range = wanted(first, *ret_cluster);
		if (!*ret_range)
			continue;
		jump = jump_from(first, i);
		if (jump <= i)
			return true;
		/* Unless somebody else took one meanwhile: then it is looked again. */
		atomic_compare_exchange_strong_explicit(&first->next, &expected, jump,
							memory_order_relaxed, memory_order_relaxed);
	}
	for (;;) {
		uint64_t i = atomic_fetch_add_explicit(&first->again, 1, memory_order_relaxed);

		if (i >= first->count)
			return false;
		*ret_cluster = first->clusters[i];
		*ret_range = wanted(first, *ret_cluster);
		if (*ret_range)
			return true;
	}
}
