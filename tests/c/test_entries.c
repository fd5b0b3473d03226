#include "check.h"

#include "format.h"
#include "lazyrestore.h"

enum { PAGES = 16, STRIDE = LR_ENTRY_HEAD_BYTES + 8, HEAD = 1 + 1 + 7 };

static uint64_t get(const uint8_t *from, unsigned width_bytes)
{
	uint64_t value = 0;
	memcpy(&value, from, width_bytes); /* these tests run on little-endian machines */
	return value;
}

static void put(uint8_t *to, uint64_t value, unsigned width_bytes)
{
	memcpy(to, &value, width_bytes);
}

/* An entry of a cluster with data that is yet to be placed, as a writer has it. */
static void make_new(uint8_t *entry, uint32_t payload_bytes, uint32_t crc32c)
{
	memset(entry, 0, STRIDE);
	entry[LR_ENTRY_KIND] = LR_CLUSTER_ZSTD;
	put(entry + LR_ENTRY_SIZE, payload_bytes, 4);
	put(entry + LR_ENTRY_CRC, crc32c, 4);
}

static void make_digests(uint8_t *digests, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		memset(digests + 32 * (size_t)i, (int)(17 + i), 32);
}

static lr_seen *open_table(void)
{
	lr_seen *seen = NULL;
	CHECK_EQ(lr_seen_open(1 << 20, &seen), LR_OK);
	return seen;
}

static void kinds_follow_from_page_states(void)
{
	uint8_t states[5 * PAGES - 3], entries[5 * STRIDE];
	uint32_t data_pages[5];

	memset(states, LR_PAGE_HOLE, PAGES);
	memset(states + PAGES, LR_PAGE_ZERO, PAGES);
	memset(states + 2 * PAGES, LR_PAGE_ZERO, PAGES);
	states[2 * PAGES + 5] = LR_PAGE_HOLE;
	memset(states + 3 * PAGES, LR_PAGE_DATA, PAGES);
	states[3 * PAGES + 1] = LR_PAGE_ZERO;
	states[3 * PAGES + 2] = LR_PAGE_HOLE;
	memset(states + 4 * PAGES, LR_PAGE_ZERO, PAGES - 3);
	memset(entries, 0xee, sizeof(entries));

	CHECK_EQ(lr_entries_make(states, sizeof(states), PAGES, entries, data_pages), 5);
	const uint8_t kinds[] = {LR_CLUSTER_HOLE, LR_CLUSTER_ZERO, LR_CLUSTER_MIXED,
				 LR_CLUSTER_ZSTD, LR_CLUSTER_ZERO};
	const uint64_t words[] = {0, 0x55555555, 0x55555155, 0xaaaaaa86, 0x01555555};
	for (unsigned i = 0; i < 5; i++) {
		const uint8_t *entry = entries + i * STRIDE;
		CHECK_EQ(entry[LR_ENTRY_KIND], kinds[i]);
		CHECK_EQ(data_pages[i], i == 3 ? PAGES - 2 : 0);
		CHECK_EQ(get(entry + LR_ENTRY_STATES, 8), words[i]);
		CHECK_EQ(get(entry + LR_ENTRY_OFFSET, 8), 0);
		CHECK_EQ(get(entry + LR_ENTRY_SIZE, 8), 0);
	}
}

static void states_of_many_pages_fill_several_words(void)
{
	uint8_t states[70], entry[LR_ENTRY_HEAD_BYTES + 24];
	uint32_t data_pages;

	memset(states, LR_PAGE_HOLE, sizeof(states));
	states[31] = states[64] = LR_PAGE_DATA;
	states[32] = LR_PAGE_ZERO;
	CHECK_EQ(lr_entries_make(states, 70, 70, entry, &data_pages), 1);
	CHECK_EQ(data_pages, 2);
	CHECK_EQ(get(entry + LR_ENTRY_STATES, 8), 2ull << 62);
	CHECK_EQ(get(entry + LR_ENTRY_STATES + 8, 8), 1);
	CHECK_EQ(get(entry + LR_ENTRY_STATES + 16, 8), 2);
}

/* Payloads on both sides of where the head of a msgpack bin gets longer. */
static void records_follow_one_another(void)
{
	const uint32_t lengths[] = {255, 256, 65535, 65536, 1};
	const uint32_t heads[] = {HEAD + 2, HEAD + 3, HEAD + 3, HEAD + 5, HEAD + 2};
	uint8_t entries[5 * STRIDE], digests[5 * 32], is_new[5];
	lr_seen *seen = open_table();
	uint64_t position = 1000;

	make_digests(digests, 5);
	for (unsigned i = 0; i < 5; i++)
		make_new(entries + i * STRIDE, lengths[i], i);
	uint64_t end = lr_entries_place(seen, digests, 5, PAGES, position, entries, is_new);
	for (unsigned i = 0; i < 5; i++) {
		position += heads[i];
		CHECK_EQ(is_new[i], 1);
		CHECK_EQ(get(entries + i * STRIDE + LR_ENTRY_OFFSET, 8), position);
		position += lengths[i];
	}
	CHECK_EQ(end, position);
	lr_seen_close(seen);
}

static void equal_clusters_share_a_record(void)
{
	uint8_t entries[4 * STRIDE], later[2 * STRIDE], digests[4 * 32], is_new[4];
	lr_seen *seen = open_table();

	make_digests(digests, 4);
	memcpy(digests + 2 * 32, digests, 32); /* the third is like the first */
	for (unsigned i = 0; i < 4; i++)
		make_new(entries + i * STRIDE, 100 + i, i);
	entries[LR_ENTRY_PLANES] = 4;
	memset(entries + 3 * STRIDE, 0, STRIDE); /* the last has no data */
	entries[3 * STRIDE + LR_ENTRY_KIND] = LR_CLUSTER_MIXED;
	CHECK_EQ(lr_entries_find(seen, digests, 4, PAGES, entries), 0);
	CHECK_EQ(lr_entries_place(seen, digests, 4, PAGES, 10, entries, is_new),
		 10 + HEAD + 2 + 100 + HEAD + 2 + 101);
	const uint8_t expected[] = {1, 1, 0, 0};
	CHECK_MEM(is_new, expected, 4);
	CHECK_MEM(entries + 2 * STRIDE, entries, LR_ENTRY_STATES);
	CHECK_EQ(get(entries + 3 * STRIDE + LR_ENTRY_OFFSET, 8), 0);
	CHECK_EQ(entries[2 * STRIDE + LR_ENTRY_PLANES], 4);

	make_new(later, 0, 0);
	make_new(later + STRIDE, 0, 0);
	later[LR_ENTRY_PLANES] = 2; /* of another way to store it, which is not used */
	CHECK_EQ(lr_entries_find(seen, digests, 2, PAGES, later), 2);
	CHECK_MEM(later, entries, 2 * STRIDE);
	/* What was found stays, and nothing is written for it. */
	CHECK_EQ(lr_entries_place(seen, digests, 2, PAGES, 5000, later, is_new), 5000);
	CHECK_MEM(later, entries, 2 * STRIDE);
	CHECK_EQ(is_new[0] + is_new[1], 0);
	lr_seen_close(seen);
}

static const struct check_case cases[] = {
	CHECK_CASE(kinds_follow_from_page_states),
	CHECK_CASE(states_of_many_pages_fill_several_words),
	CHECK_CASE(records_follow_one_another),
	CHECK_CASE(equal_clusters_share_a_record),
};
CHECK_MAIN(cases)
