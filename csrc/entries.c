/*
 * Leaf entries of the index, a piece of memory at a time: what a writer does for every cluster, so
 * that its Python need not. The format is docs/format.md, "Index" and "Cluster"; see lazyrestore.h.
 */
#include <assert.h>
#include <string.h>

#include "format.h"
#include "lazyrestore.h"

#define DIGEST_BYTES 32u

static void put_le(uint8_t *to, uint64_t value, unsigned width_bytes)
{
	for (unsigned i = 0; i < width_bytes; i++)
		to[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_le(const uint8_t *from, unsigned width_bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < width_bytes; i++)
		value |= (uint64_t)from[i] << (8 * i);
	return value;
}

/* Fill in one cluster's states and kind; returns its data pages. */
static uint32_t make_entry(const uint8_t *page_states, uint32_t pages, uint8_t *ret_entry)
{
	uint32_t counts[3] = {0};

	for (uint32_t page = 0; page < pages; page++) {
		uint8_t state = page_states[page];

		assert(state <= LR_PAGE_DATA);
		counts[state]++;
		/* Words are little-endian, so the bits of pages stand in the order of bytes. */
		ret_entry[LR_ENTRY_STATES + page / 4] |= (uint8_t)(state << (2 * (page % 4)));
	}
	if (counts[LR_PAGE_DATA] > 0)
		ret_entry[LR_ENTRY_KIND] = LR_CLUSTER_ZSTD;
	else if (counts[LR_PAGE_HOLE] == pages)
		ret_entry[LR_ENTRY_KIND] = LR_CLUSTER_HOLE;
	else if (counts[LR_PAGE_ZERO] == pages)
		ret_entry[LR_ENTRY_KIND] = LR_CLUSTER_ZERO;
	else
		ret_entry[LR_ENTRY_KIND] = LR_CLUSTER_MIXED;
	return counts[LR_PAGE_DATA];
}

static uint32_t entry_bytes(uint32_t pages_per_cluster)
{
	return LR_ENTRY_HEAD_BYTES
	       + 8 * ((pages_per_cluster + LR_PAGES_PER_WORD - 1) / LR_PAGES_PER_WORD);
}

uint64_t lr_entries_make(const uint8_t *page_states, uint64_t pages, uint32_t pages_per_cluster,
			 void *ret_entries, uint32_t *ret_data_pages)
{
	uint32_t stride = entry_bytes(pages_per_cluster);
	uint8_t *entry = ret_entries;
	uint64_t count = 0;

	assert(pages_per_cluster > 0);
	for (; pages > 0; count++, entry += stride) {
		uint32_t here = pages < pages_per_cluster ? (uint32_t)pages : pages_per_cluster;

		memset(entry, 0, stride);
		ret_data_pages[count] = make_entry(page_states, here, entry);
		page_states += here;
		pages -= here;
	}
	return count;
}

static int has_data(const uint8_t *entry)
{
	return entry[LR_ENTRY_KIND] == LR_CLUSTER_ZSTD || entry[LR_ENTRY_KIND] == LR_CLUSTER_RAW;
}

static int has_place(const uint8_t *entry)
{
	return get_le(entry + LR_ENTRY_OFFSET, 8) != 0; /* no payload lies at a file's start */
}

/* Fill in the place of an equal cluster, if one was stored. */
static int find_place(const lr_seen *seen, const uint8_t *digest, uint8_t *entry)
{
	struct lr_stored_cluster stored;

	if (!lr_seen_find(seen, digest, &stored))
		return 0;
	put_le(entry + LR_ENTRY_OFFSET, stored.payload_offset, 8);
	put_le(entry + LR_ENTRY_SIZE, stored.payload_bytes, 4);
	put_le(entry + LR_ENTRY_CRC, stored.crc32c, 4);
	entry[LR_ENTRY_KIND] = (uint8_t)stored.kind;
	entry[LR_ENTRY_PLANES] = (uint8_t)stored.planes;
	return 1;
}

uint64_t lr_entries_find(const lr_seen *seen, const uint8_t *digests, uint64_t count,
			 uint32_t pages_per_cluster, void *entries)
{
	uint32_t stride = entry_bytes(pages_per_cluster);
	uint64_t found = 0;

	for (uint64_t i = 0; i < count; i++) {
		uint8_t *entry = (uint8_t *)entries + i * stride;
		if (has_data(entry))
			found += (uint64_t)find_place(seen, digests + i * DIGEST_BYTES, entry);
	}
	return found;
}

/* Bytes of a cluster record before its payload: a map of one, its key, the head of a bin. */
static uint32_t record_head_bytes(uint32_t payload_bytes)
{
	const uint32_t key = 1 + 1 + sizeof("cluster") - 1;

	return key + (payload_bytes < 1u << 8 ? 2 : payload_bytes < 1u << 16 ? 3 : 5);
}

uint64_t lr_entries_place(lr_seen *seen, const uint8_t *digests, uint64_t count,
			  uint32_t pages_per_cluster, uint64_t position, void *entries,
			  uint8_t *ret_is_new)
{
	uint32_t stride = entry_bytes(pages_per_cluster);

	for (uint64_t i = 0; i < count; i++) {
		uint8_t *entry = (uint8_t *)entries + i * stride;
		const uint8_t *digest = digests + i * DIGEST_BYTES;

		ret_is_new[i] = 0;
		/* Found before; or an equal one was written since then. */
		if (!has_data(entry) || has_place(entry) || find_place(seen, digest, entry))
			continue;
		struct lr_stored_cluster stored = {
			.payload_bytes = (uint32_t)get_le(entry + LR_ENTRY_SIZE, 4),
			.crc32c = (uint32_t)get_le(entry + LR_ENTRY_CRC, 4),
			.kind = entry[LR_ENTRY_KIND],
			.planes = entry[LR_ENTRY_PLANES],
		};
		stored.payload_offset = position + record_head_bytes(stored.payload_bytes);
		put_le(entry + LR_ENTRY_OFFSET, stored.payload_offset, 8);
		lr_seen_put(seen, digest, &stored);
		position = stored.payload_offset + stored.payload_bytes;
		ret_is_new[i] = 1;
	}
	return position;
}
