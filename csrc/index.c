#include "index.h"

#include <string.h>
#include <sys/mman.h>

#include "planes.h"
#include "reserve.h"
#include "span.h"

/* Of a cache that is kept for the next to use it: some 64 KiB. */
#define KEPT_SLOTS_MAX 8u

_Static_assert(LR_PAGES_PER_CLUSTER_MAX / LR_PAGES_PER_WORD
		       == sizeof(((struct lr_cluster_info *)0)->states) / sizeof(uint64_t),
	       "lr_cluster_info has room for the states of the largest cluster");

int lr_index_parse_ref(const uint8_t *data, uint64_t bytes, struct lr_ref *ret_ref)
{
	struct lr_span span = lr_span_of(data, bytes);

	ret_ref->offset = lr_span_u64(&span, LR_ENTRY_OFFSET);
	ret_ref->bytes = lr_span_u32(&span, LR_ENTRY_SIZE);
	ret_ref->crc32c = lr_span_u32(&span, LR_ENTRY_CRC);
	ret_ref->kind = lr_span_u8(&span, LR_ENTRY_KIND);
	if (!lr_span_is_zero(&span, LR_ENTRY_PLANES, LR_REF_BYTES - LR_ENTRY_PLANES) || span.bad)
		return LR_ERR_NODE;
	switch (ret_ref->kind) {
	case LR_REF_HOLE:
	case LR_REF_ZERO:
		return ret_ref->offset || ret_ref->bytes || ret_ref->crc32c ? LR_ERR_NODE : LR_OK;
	case LR_REF_NODE:
		return LR_OK;
	default:
		return LR_ERR_NODE;
	}
}

static size_t cache_bytes(const struct lr_index_cache *cache)
{
	return LR_INDEX_CACHE_SLOTS * (sizeof(struct lr_index_slot) + (size_t)cache->node_bytes);
}

int lr_index_cache_open(struct lr_index_cache *cache, const struct lr_index *index)
{
	uint32_t leaf_bytes = LR_NODE_HEAD_BYTES + LR_NODE_FANOUT * index->entry_bytes;
	void *memory;

	memset(cache, 0, sizeof(*cache));
	cache->node_bytes = (leaf_bytes + 63u) & ~63u;
	memory = lr_buffer_take(cache_bytes(cache));
	if (!memory)
		return LR_ERR_NOMEM;
	cache->slots = memory;
	/* It may have been another's: then `bytes` still tells of which nodes the memory is there.
	 */
	for (uint32_t slot = 0; slot < LR_INDEX_CACHE_SLOTS; slot++)
		cache->slots[slot].offset = 0;
	cache->nodes = (uint8_t *)memory + LR_INDEX_CACHE_SLOTS * sizeof(struct lr_index_slot);
	return LR_OK;
}

void lr_index_cache_close(struct lr_index_cache *cache)
{
	uint32_t used = 0;

	for (uint32_t slot = 0; cache->slots && slot < LR_INDEX_CACHE_SLOTS; slot++)
		used += cache->slots[slot].bytes != 0;
	/* One in which there is much, of all that used it one after the other, is not kept. */
	if (used > KEPT_SLOTS_MAX)
		munmap(cache->slots, cache_bytes(cache));
	else if (cache->slots)
		lr_buffer_give(cache->slots, cache_bytes(cache));
	cache->slots = NULL;
}

static uint32_t slot_of(uint64_t offset)
{
	/* Node offsets are neither aligned nor evenly spaced: spread them by a multiplicative hash.
	 */
	return (uint32_t)((offset * 0x9e3779b97f4a7c15ull) >> (64 - LR_INDEX_CACHE_BITS));
}

/* Get a node's payload into the cache: its bytes, or NULL with the problem set. */
static const uint8_t *get_node(const struct lr_index *index, struct lr_index_cache *cache,
			       const struct lr_ref *ref, uint64_t cluster,
			       struct lr_problem *ret_problem)
{
	uint32_t slot = slot_of(ref->offset);
	uint8_t *node = cache->nodes + (size_t)slot * cache->node_bytes;
	int code;

	if (ref->bytes < LR_NODE_HEAD_BYTES || ref->bytes > cache->node_bytes
	    || ref->offset < LR_MAGIC_BYTES
	    || !lr_span_fits(ref->offset, ref->bytes, index->limit)) {
		lr_problem_set(ret_problem, LR_ERR_NODE, 0, cluster, ref->offset);
		return NULL;
	}
	if (cache->slots[slot].offset == ref->offset && cache->slots[slot].bytes == ref->bytes
	    && cache->slots[slot].crc32c == ref->crc32c)
		return node;
	cache->slots[slot].offset = 0;
	cache->slots[slot].bytes = ref->bytes;
	cache->slots[slot].crc32c = ref->crc32c;
	code = lr_source_read(index->source, ref->offset, node, ref->bytes, ret_problem);
	if (code < 0) {
		if (ret_problem)
			ret_problem->cluster = cluster;
		return NULL;
	}
	if (lr_crc32c(0, node, ref->bytes) != ref->crc32c) {
		lr_problem_set(ret_problem, LR_ERR_NODE, 0, cluster, ref->offset);
		return NULL;
	}
	cache->slots[slot].offset = ref->offset;
	return node;
}

/* The entry of `cluster` in a node of `level`, or NULL where the node is not what its place in the
 * tree says. */
static const uint8_t *find_entry(const struct lr_index *index, const struct lr_ref *ref,
				 const uint8_t *node, uint32_t level, uint64_t cluster)
{
	struct lr_span span = lr_span_of(node, ref->bytes);
	uint32_t entry_bytes = level == 0 ? index->entry_bytes : LR_REF_BYTES;
	uint32_t shift = level * LR_NODE_FANOUT_BITS;
	uint32_t count = lr_span_u32(&span, LR_NODE_COUNT);
	uint32_t slot = (uint32_t)(cluster >> shift) % LR_NODE_FANOUT;
	uint64_t first = cluster >> shift >> LR_NODE_FANOUT_BITS << LR_NODE_FANOUT_BITS << shift;

	if (lr_span_u32(&span, LR_NODE_LEVEL) != level
	    || lr_span_u64(&span, LR_NODE_FIRST_CLUSTER) != first || count > LR_NODE_FANOUT
	    || slot >= count || ref->bytes != LR_NODE_HEAD_BYTES + count * entry_bytes)
		return NULL;
	return node + LR_NODE_HEAD_BYTES + (size_t)slot * entry_bytes;
}

static void set_uniform(struct lr_cluster_info *info, uint32_t kind)
{
	uint64_t word = kind == LR_CLUSTER_ZERO ? 0x5555555555555555ull : 0;

	for (uint32_t page = 0; page < info->pages; page += LR_PAGES_PER_WORD) {
		uint32_t rest = info->pages - page;
		uint64_t mask = rest >= LR_PAGES_PER_WORD ? UINT64_MAX : (1ull << (2 * rest)) - 1;

		info->states[page / LR_PAGES_PER_WORD] = word & mask;
	}
	info->kind = kind;
}

/* True if what the leaf entry says of kind, states, place and length fits together. */
static bool entry_adds_up(const struct lr_index *index, const struct lr_cluster_info *info)
{
	uint64_t data_bytes = (uint64_t)info->data_pages * index->page_size;
	uint32_t zeros = 0;

	/* All that the words can say, not only the cluster's own pages: each bit counts in
	 * data_pages, and the buffers are of a cluster's size. */
	for (uint32_t page = 0; page < info->state_words * LR_PAGES_PER_WORD; page++) {
		uint32_t state = lr_states_get(info->states, page);

		if (state > LR_PAGE_DATA || (page >= info->pages && state != LR_PAGE_HOLE))
			return false;
		zeros += state == LR_PAGE_ZERO;
	}
	if (info->planes
	    && (!index->has_planes || info->kind != LR_CLUSTER_ZSTD
		|| !lr_planes_is_width(info->planes)))
		return false;
	if (info->kind < LR_CLUSTER_ZSTD || info->kind == LR_CLUSTER_MIXED) {
		if (info->data_pages || info->payload_offset || info->payload_bytes || info->crc32c)
			return false;
		if (info->kind == LR_CLUSTER_MIXED)
			return zeros > 0 && zeros < info->pages;
		return zeros == (info->kind == LR_CLUSTER_ZERO ? info->pages : 0);
	}
	if (info->data_pages == 0 || info->payload_offset < LR_MAGIC_BYTES
	    || !lr_span_fits(info->payload_offset, info->payload_bytes, index->limit))
		return false;
	if (info->kind == LR_CLUSTER_RAW)
		return info->payload_bytes == data_bytes;
	return info->kind == LR_CLUSTER_ZSTD && info->payload_bytes > 0
	       && info->payload_bytes < data_bytes;
}

static int parse_leaf_entry(const struct lr_index *index, const uint8_t *entry,
			    struct lr_cluster_info *info)
{
	struct lr_span span = lr_span_of(entry, index->entry_bytes);

	info->payload_offset = lr_span_u64(&span, LR_ENTRY_OFFSET);
	info->payload_bytes = lr_span_u32(&span, LR_ENTRY_SIZE);
	info->crc32c = lr_span_u32(&span, LR_ENTRY_CRC);
	info->kind = lr_span_u8(&span, LR_ENTRY_KIND);
	info->planes = lr_span_u8(&span, LR_ENTRY_PLANES);
	for (uint32_t word = 0; word < info->state_words; word++) {
		uint64_t states = lr_span_u64(&span, LR_ENTRY_STATES + 8ull * word);

		info->states[word] = states;
		info->data_pages += (uint32_t)__builtin_popcountll(states & 0xaaaaaaaaaaaaaaaaull);
	}
	if (!lr_span_is_zero(&span, LR_ENTRY_RESERVED, LR_ENTRY_STATES - LR_ENTRY_RESERVED)
	    || span.bad || !entry_adds_up(index, info))
		return LR_ERR_ENTRY;
	return LR_OK;
}

/* Clusters from `cluster` to the end of the span of 256^height clusters that it is in, or of the
 * image. */
static uint64_t run_to_end_of_span(const struct lr_index *index, uint64_t cluster, uint32_t height)
{
	uint64_t rest = index->cluster_count - cluster;
	uint64_t span;

	if (height * LR_NODE_FANOUT_BITS >= 64)
		return rest;
	span = 1ull << (height * LR_NODE_FANOUT_BITS);
	span -= cluster & (span - 1);
	return span < rest ? span : rest;
}

int lr_index_find(const struct lr_index *index, struct lr_index_cache *cache, uint64_t cluster,
		  uint32_t pages, struct lr_cluster_info *ret_info, struct lr_problem *ret_problem)
{
	struct lr_cluster_info info = {
		.cluster = cluster,
		.pages = pages,
		.state_words =
			(index->pages_per_cluster + LR_PAGES_PER_WORD - 1) / LR_PAGES_PER_WORD,
		.run = 1,
	};
	struct lr_ref ref = index->root;
	uint32_t level = index->height;
	const uint8_t *entry = NULL;
	int code;

	if (cluster >= index->cluster_count || pages > index->pages_per_cluster)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, cluster, LR_NOWHERE);
	while (level-- > 0) {
		const uint8_t *node;

		if (ref.kind != LR_REF_NODE) {
			set_uniform(&info,
				    ref.kind == LR_REF_ZERO ? LR_CLUSTER_ZERO : LR_CLUSTER_HOLE);
			info.run = run_to_end_of_span(index, cluster, level + 1);
			*ret_info = info;
			return LR_OK;
		}
		node = get_node(index, cache, &ref, cluster, ret_problem);
		if (!node)
			return ret_problem ? ret_problem->code : LR_ERR_NODE;
		entry = find_entry(index, &ref, node, level, cluster);
		if (!entry || (level > 0 && lr_index_parse_ref(entry, LR_REF_BYTES, &ref) < 0))
			return lr_problem_set(ret_problem, LR_ERR_NODE, 0, cluster, ref.offset);
	}
	code = parse_leaf_entry(index, entry, &info);
	if (code < 0)
		return lr_problem_set(ret_problem, code, 0, cluster, ref.offset);
	*ret_info = info;
	return LR_OK;
}
