/*
 * The page-to-cluster look-up: a radix tree of nodes in the file (docs/format.md, "Index"), read on
 * demand. Floor 2. struct lr_index is immutable and shared; a struct lr_index_cache belongs to one
 * thread at a time. A look-up allocates nothing: the cache is mapped when it is opened, and costs
 * memory only as far as it is used.
 */
#ifndef LR_INDEX_H
#define LR_INDEX_H

#include "format.h"
#include "source.h"

struct lr_ref {
	uint64_t offset;
	uint32_t bytes;
	uint32_t crc32c;
	uint8_t kind; /* enum lr_ref_kind */
};

struct lr_index {
	const struct lr_source *source;
	struct lr_ref root;
	uint64_t cluster_count;
	uint64_t limit; /* payloads end before this offset */
	uint32_t height;
	uint32_t page_size;
	uint32_t pages_per_cluster;
	uint32_t entry_bytes; /* of a leaf */
	bool has_planes;      /* clusters may have their bytes in planes */
};

/* Memory is had as it is used: 8 KiB a slot, with clusters of 64 KiB and less. */
#define LR_INDEX_CACHE_BITS  9u
#define LR_INDEX_CACHE_SLOTS (1u << LR_INDEX_CACHE_BITS)

struct lr_index_slot {
	uint64_t offset; /* of the payload; 0: empty */
	uint32_t bytes;  /* 0: its node was never written to */
	uint32_t crc32c;
};

struct lr_index_cache {
	struct lr_index_slot *slots; /* in one mapping with the nodes, before them */
	uint8_t *nodes;              /* slots × node_bytes */
	uint32_t node_bytes;
};

/* Read a reference from bytes that begin with one: LR_ERR_NODE where it contradicts itself. */
int lr_index_parse_ref(const uint8_t *data, uint64_t bytes, struct lr_ref *ret_ref);

int lr_index_cache_open(struct lr_index_cache *cache, const struct lr_index *index);
void lr_index_cache_close(struct lr_index_cache *cache);

/* Look up a cluster whose region has `pages` pages in it. Fills all of *ret_info but nothing on
 * failure. */
int lr_index_find(const struct lr_index *index, struct lr_index_cache *cache, uint64_t cluster,
		  uint32_t pages, struct lr_cluster_info *ret_info, struct lr_problem *ret_problem);

static inline uint32_t lr_states_get(const uint64_t *states, uint32_t page)
{
	return (uint32_t)(states[page / LR_PAGES_PER_WORD] >> (2 * (page % LR_PAGES_PER_WORD)))
	       & 3u;
}

#endif
