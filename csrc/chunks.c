#include "chunks.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* A larger cluster that lies across the end of a chunk is not worth decoding twice. */
#define CLUSTER_MAX (128u << 10)

static uint64_t chunks_of(const struct lr_chunk_base *base, const struct lr_range *range)
{
	return (base->phase + range->bytes + LR_STAGE_BYTES - 1) / LR_STAGE_BYTES;
}

int lr_chunks_open(struct lr_chunks *chunks, struct lr_target *target)
{
	uint32_t count = target->image->info.region_count;
	uint32_t cluster_size = target->image->info.cluster_size;
	void *states;

	memset(chunks, 0, sizeof(*chunks));
	chunks->target = target;
	chunks->bases = calloc((size_t)count + 1, sizeof(*chunks->bases));
	if (!chunks->bases)
		return LR_ERR_NOMEM;
	for (uint32_t i = 0; i < count; i++) {
		const struct lr_range *range = &target->ranges[i];
		struct lr_chunk_base *base = &chunks->bases[i];

		base->first = chunks->count;
		if (lr_range_state(range) != LR_RANGE_ACTIVE)
			continue;
		base->phase = range->start % LR_STAGE_BYTES;
		if (target->is_huge || (base->phase % cluster_size && cluster_size > CLUSTER_MAX))
			base->phase = 0;
		chunks->count += chunks_of(base, range);
	}
	chunks->bases[count].first = chunks->count;
	states = mmap(NULL, chunks->count + 1, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (states == MAP_FAILED) {
		free(chunks->bases);
		chunks->bases = NULL;
		return LR_ERR_NOMEM;
	}
	chunks->states = states;
	return LR_OK;
}

void lr_chunks_close(struct lr_chunks *chunks)
{
	if (chunks->states)
		munmap((void *)chunks->states, chunks->count + 1);
	free(chunks->bases);
	chunks->states = NULL;
	chunks->bases = NULL;
}

/* The range that a chunk belongs to: the last that has not begun after it. */
static uint32_t range_of(const struct lr_chunks *chunks, uint64_t number)
{
	uint32_t low = 0, high = chunks->target->image->info.region_count;

	while (high - low > 1) {
		uint32_t middle = low + (high - low) / 2;

		if (chunks->bases[middle].first <= number)
			low = middle;
		else
			high = middle;
	}
	return low;
}

static void describe(const struct lr_chunks *chunks, uint64_t number, struct lr_chunk *ret_chunk)
{
	uint32_t i = range_of(chunks, number);
	const struct lr_chunk_base *base = &chunks->bases[i];
	struct lr_range *range = &chunks->target->ranges[i];
	uint64_t begin = (number - base->first) * LR_STAGE_BYTES, end = begin + LR_STAGE_BYTES;

	ret_chunk->number = number;
	ret_chunk->range = range;
	ret_chunk->lead = begin < base->phase ? base->phase - begin : 0;
	ret_chunk->offset = begin + ret_chunk->lead - base->phase;
	end -= base->phase;
	if (end > range->bytes)
		end = range->bytes;
	ret_chunk->bytes = end - ret_chunk->offset;
}

static uint64_t chunk_at(const struct lr_chunks *chunks, uint32_t range, uint64_t offset)
{
	const struct lr_chunk_base *base = &chunks->bases[range];

	return base->first + (base->phase + offset) / LR_STAGE_BYTES;
}

static void follow(struct lr_chunks *chunks, uint64_t touched)
{
	const struct lr_image *image = chunks->target->image;
	int64_t region;
	uint64_t offset;

	if (touched == 0
	    || atomic_exchange_explicit(&chunks->followed, touched, memory_order_relaxed)
		       == touched)
		return;
	region = lr_image_region_of_cluster(image, touched - 1);
	if (region < 0)
		return;
	offset = (touched - 1 - chunks->target->ranges[region].region.first_cluster)
		 * image->info.cluster_size;
	atomic_store_explicit(&chunks->next, chunk_at(chunks, (uint32_t)region, offset) + 1,
			      memory_order_relaxed);
}

/* The first of [number, end) that is to do and could be taken. */
static bool take_from(struct lr_chunks *chunks, uint64_t number, uint64_t end,
		      struct lr_chunk *ret_chunk)
{
	for (; number < end; number++) {
		_Atomic uint8_t *state = &chunks->states[number];
		uint8_t expected = LR_CHUNK_TODO;

		/* Acquire: partner of the release in lr_chunks_put. */
		if (atomic_load_explicit(state, memory_order_relaxed) == LR_CHUNK_TODO
		    && atomic_compare_exchange_strong_explicit(state, &expected, LR_CHUNK_TAKEN,
							       memory_order_acquire,
							       memory_order_relaxed)) {
			atomic_store_explicit(&chunks->next, number + 1, memory_order_relaxed);
			describe(chunks, number, ret_chunk);
			return true;
		}
	}
	return false;
}

bool lr_chunks_take(struct lr_chunks *chunks, uint64_t touched, struct lr_chunk *ret_chunk)
{
	uint64_t next;

	follow(chunks, touched);
	next = atomic_load_explicit(&chunks->next, memory_order_relaxed);
	if (next > chunks->count)
		next = chunks->count;
	return take_from(chunks, next, chunks->count, ret_chunk)
	       || take_from(chunks, 0, chunks->count, ret_chunk);
}

void lr_chunks_put(struct lr_chunks *chunks, const struct lr_chunk *chunk,
		   enum lr_chunk_state state)
{
	/* Release: partner of the acquire in take_from and lr_chunks_look. */
	atomic_store_explicit(&chunks->states[chunk->number], (uint8_t)state, memory_order_release);
}

bool lr_chunk_has(const struct lr_chunk *chunk, uint64_t cluster, uint64_t cluster_size)
{
	uint64_t first = chunk->range->region.first_cluster;
	uint64_t offset = (cluster - first) * cluster_size;

	return cluster >= first && offset + cluster_size > chunk->offset
	       && offset < chunk->offset + chunk->bytes;
}

enum lr_chunk_state lr_chunks_look(const struct lr_chunks *chunks, const struct lr_range *range,
				   uint64_t offset, uint64_t *ret_end)
{
	uint64_t number = chunk_at(chunks, range->number, offset);
	struct lr_chunk chunk;

	if (number >= chunks->bases[range->number + 1].first) {
		*ret_end = range->bytes;
		return LR_CHUNK_FAILED;
	}
	describe(chunks, number, &chunk);
	*ret_end = chunk.offset + chunk.bytes;
	return (enum lr_chunk_state)atomic_load_explicit(&chunks->states[number],
							 memory_order_acquire);
}

bool lr_chunks_complete(const struct lr_chunks *chunks, const struct lr_range *range)
{
	uint64_t first = chunks->bases[range->number].first;
	uint64_t end = chunks->bases[range->number + 1].first;

	for (uint64_t number = first; number < end; number++) {
		uint8_t state = atomic_load_explicit(&chunks->states[number], memory_order_acquire);

		if (state != LR_CHUNK_DONE && state != LR_CHUNK_ZERO)
			return false;
	}
	return first < end;
}
