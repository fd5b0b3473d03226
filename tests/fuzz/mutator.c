/*
 * What libFuzzer calls to make an input from another: changes that know the format. A change is
 * made where it means something, what follows from it is put right most of the time, and checksums
 * nearly always: otherwise all of them would end at the first one.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <string.h>

#include "format.h"
#include "parts.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t bytes, size_t max_bytes);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max_bytes, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *one, size_t one_bytes, const uint8_t *other,
				 size_t other_bytes, uint8_t *made, size_t max_bytes,
				 unsigned seed);

/* One mutation under way. */
struct change {
	struct parts *parts;
	uint64_t random;
	bool wants_recount;
};

static uint8_t room[2][PARTS_BYTES];
static struct parts images[2];

static uint64_t below(struct change *change, uint64_t limit)
{
	return limit ? parts_random(&change->random) % limit : 0;
}

/* A part of a kind; PARTS_MAX where there is none. */
static unsigned pick(struct change *change, enum part_kind kind)
{
	const struct parts *parts = change->parts;
	unsigned found = PARTS_MAX, seen = 0;

	for (unsigned i = 0; i < parts->count; i++)
		if (parts->all[i].kind == kind && below(change, ++seen) == 0)
			found = i;
	return found;
}

/* A number that a reader may not have thought of. */
static uint64_t odd_value(struct change *change, uint64_t old)
{
	const struct parts *parts = change->parts;
	const struct part *part = &parts->all[below(change, parts->count)];
	uint64_t bit = 1ull << below(change, 64);

	switch (below(change, 14)) {
	case 0:
		return 0;
	case 1:
		return UINT64_MAX - below(change, 300);
	case 2:
		return old + 1;
	case 3:
		return old - 1;
	case 4:
		return old * 2;
	case 5:
		return bit;
	case 6:
		return bit - 1;
	case 7:
		return old ^ bit;
	case 8:
		return parts->bytes - below(change, 400);
	case 9:
		return part->offset;
	case 10:
		return part->bytes;
	case 11:
		return old ^ 1ull << below(change, 8);
	case 12:
		return below(change, 512);
	default:
		return parts_random(&change->random);
	}
}

struct field {
	uint8_t at;
	uint8_t width;
};

static const struct field footer_fields[] = {
	{LR_FOOTER_VERSION, 4},
	{LR_FOOTER_PAGE_SIZE, 4},
	{LR_FOOTER_CLUSTER_SIZE, 4},
	{LR_FOOTER_HEADER_BYTES, 4},
	{LR_FOOTER_CRITICAL, 8},
	{LR_FOOTER_COMPATIBLE, 8},
	{LR_FOOTER_ID, 8},
	{LR_FOOTER_DIGEST, 8},
	{LR_FOOTER_FILE_BYTES, 8},
	{LR_FOOTER_ROOT_OFFSET, 8},
	{LR_FOOTER_ROOT_SIZE, 4},
	{LR_FOOTER_ROOT_CRC, 4},
	{LR_FOOTER_METADATA_OFFSET, 8},
	{LR_FOOTER_METADATA_SIZE, 4},
	{LR_FOOTER_METADATA_CRC, 4},
	{LR_FOOTER_HEADER_CRC, 4},
	{LR_FOOTER_RESERVED, 4},
	{LR_FOOTER_FILES_OFFSET, 8},
	{LR_FOOTER_FILES_SIZE, 4},
	{LR_FOOTER_FILES_CRC, 4},
	{LR_FOOTER_FILES_CONTENT, 4},
	{LR_FOOTER_RESERVED_2, 8},
	{LR_FOOTER_CRC, 4},
};
static const struct field root_fields[] = {
	{LR_ROOT_REGION_COUNT, 4},  {LR_ROOT_NAMES_BYTES, 4},     {LR_ROOT_TREE_HEIGHT, 4},
	{LR_ROOT_RESERVED_1, 4},    {LR_ROOT_CLUSTER_COUNT, 8},   {LR_ROOT_LOGICAL_BYTES, 8},
	{LR_ROOT_ZERO_BYTES, 8},    {LR_ROOT_HOLE_BYTES, 8},      {LR_ROOT_DUPLICATE_BYTES, 8},
	{LR_ROOT_PAYLOAD_BYTES, 8}, {LR_ROOT_STORED_CLUSTERS, 8}, {LR_ROOT_RESERVED_2, 8},
};
static const struct field region_fields[] = {
	{LR_REGION_ADDRESS, 8},       {LR_REGION_LENGTH, 8},      {LR_REGION_FIRST_CLUSTER, 8},
	{LR_REGION_CLUSTER_COUNT, 8}, {LR_REGION_NAME_OFFSET, 4}, {LR_REGION_NAME_BYTES, 4},
	{LR_REGION_PROTECTION, 4},    {LR_REGION_FLAGS, 4},       {LR_REGION_CODEC, 1},
	{LR_REGION_FILTER, 1},        {LR_REGION_PLANES, 1},      {LR_REGION_RESERVED, 8},
};
static const struct field node_fields[] = {
	{LR_NODE_LEVEL, 4},
	{LR_NODE_COUNT, 4},
	{LR_NODE_FIRST_CLUSTER, 8},
};
/* The last two are not there in a reference: the next one's. */
static const struct field entry_fields[] = {
	{LR_ENTRY_OFFSET, 8},
	{LR_ENTRY_SIZE, 4},
	{LR_ENTRY_CRC, 4},
	{LR_ENTRY_KIND, 1},
	{LR_ENTRY_KIND, 1},
	{LR_ENTRY_PLANES, 1},
	{LR_ENTRY_RESERVED, 6},
	{24, 8},
	{24, 1},
};
#define COUNT(fields) (sizeof(fields) / sizeof((fields)[0]))

static void change_field(struct change *change, uint8_t *structure, size_t bytes,
			 const struct field *fields, size_t count)
{
	struct field field = fields[below(change, count)];
	uint64_t old;

	if ((size_t)field.at + field.width > bytes)
		return;
	old = parts_get(structure + field.at, field.width);
	parts_put(structure + field.at, odd_value(change, old), field.width);
}

static void change_footer(struct change *change)
{
	const struct part *footer = change->parts->footer;

	if (footer)
		change_field(change, change->parts->data + footer->offset, footer->bytes,
			     footer_fields, COUNT(footer_fields));
}

static void change_root(struct change *change)
{
	const struct part *root = change->parts->root;

	if (root)
		change_field(change, change->parts->data + root->offset, root->bytes, root_fields,
			     COUNT(root_fields));
}

static size_t region_count(const struct part *root)
{
	return (root->bytes - LR_ROOT_BYTES) / LR_REGION_BYTES;
}

static void change_region(struct change *change)
{
	const struct part *root = change->parts->root;
	uint8_t *region;

	if (!root || region_count(root) == 0)
		return;
	region = change->parts->data + root->offset + LR_ROOT_BYTES
		 + below(change, region_count(root)) * LR_REGION_BYTES;
	change_field(change, region, LR_REGION_BYTES, region_fields, COUNT(region_fields));
	change->wants_recount = true;
}

/* One region more, or fewer, or two that change places. */
static void change_region_table(struct change *change)
{
	struct parts *parts = change->parts;
	const struct part *root = parts->root;
	unsigned number = (unsigned)(root ? root - parts->all : 0);
	uint8_t region[LR_REGION_BYTES];
	uint64_t count, from, to;

	if (!root || region_count(root) == 0)
		return;
	count = parts_get(parts->data + root->offset + LR_ROOT_REGION_COUNT, 4);
	from = LR_ROOT_BYTES + below(change, region_count(root)) * LR_REGION_BYTES;
	to = LR_ROOT_BYTES + below(change, region_count(root)) * LR_REGION_BYTES;
	memcpy(region, parts->data + root->offset + from, sizeof(region));
	if (below(change, 2)) {
		if (parts_splice(parts, number, to, 0, region, sizeof(region)) && parts->root)
			parts_put(parts->data + parts->root->offset, count + 1, 4);
	} else if (parts_splice(parts, number, from, sizeof(region), NULL, 0) && parts->root) {
		parts_put(parts->data + parts->root->offset, count - 1, 4);
	}
	change->wants_recount = true;
}

/* Other sizes of page and cluster, that could be. */
static void change_sizes(struct change *change)
{
	uint8_t *footer;

	if (!change->parts->footer)
		return;
	footer = change->parts->data + change->parts->footer->offset;
	if (below(change, 2))
		parts_put(footer + LR_FOOTER_PAGE_SIZE, 4096ull << below(change, 5), 4);
	parts_put(footer + LR_FOOTER_CLUSTER_SIZE, 4096ull << below(change, 10), 4);
	change->wants_recount = true;
}

/* A reference or entry: the tree's root, or any of a node. Its size is what is there of it. */
static uint8_t *pick_entry(struct change *change, size_t *ret_bytes)
{
	const struct parts *parts = change->parts;
	unsigned number = pick(change, PART_NODE);
	const struct part *node = &parts->all[number];
	uint32_t size;

	if (number == PARTS_MAX || below(change, 8) == 0) {
		*ret_bytes = LR_REF_BYTES;
		return parts->root ? parts->data + parts->root->offset + LR_ROOT_TREE : NULL;
	}
	if (node->bytes < LR_NODE_HEAD_BYTES + LR_REF_BYTES)
		return NULL;
	size = parts_get(parts->data + node->offset, 4) ? LR_REF_BYTES : parts->entry_bytes;
	if (node->bytes < LR_NODE_HEAD_BYTES + size)
		return NULL;
	*ret_bytes = size;
	return parts->data + node->offset + LR_NODE_HEAD_BYTES
	       + below(change, (node->bytes - LR_NODE_HEAD_BYTES) / size) * size;
}

static void change_entry(struct change *change)
{
	size_t bytes = 0;
	uint8_t *entry = pick_entry(change, &bytes);

	if (entry)
		change_field(change, entry, bytes, entry_fields, COUNT(entry_fields));
}

/* One entry over another, or all of a node's states to others, or a uniform reference. */
static void copy_entry(struct change *change)
{
	size_t from_bytes = 0, to_bytes = 0;
	uint8_t *from = pick_entry(change, &from_bytes), *to = pick_entry(change, &to_bytes);

	if (!from || !to)
		return;
	if (below(change, 3) == 0) {
		memset(to, 0, LR_REF_BYTES);
		to[LR_ENTRY_KIND] = (uint8_t)below(change, 2);
		if (to_bytes > LR_REF_BYTES)
			memset(to + LR_REF_BYTES, to[LR_ENTRY_KIND] ? 0x55 : 0,
			       to_bytes - LR_REF_BYTES);
	} else {
		memmove(to, from, from_bytes < to_bytes ? from_bytes : to_bytes);
	}
}

static void change_node(struct change *change)
{
	unsigned number = pick(change, PART_NODE);
	const struct part *node = &change->parts->all[number];

	if (number == PARTS_MAX)
		return;
	if (below(change, 3) == 0) { /* an entry more or fewer */
		uint32_t size = change->parts->entry_bytes;
		uint8_t entry[LR_ENTRY_HEAD_BYTES + 8 * 17] = {0};

		if (below(change, 2))
			parts_splice(change->parts, number, node->bytes, 0, entry, size);
		else if (node->bytes >= LR_NODE_HEAD_BYTES + size)
			parts_splice(change->parts, number, LR_NODE_HEAD_BYTES, size, NULL, 0);
		change->wants_recount = true;
		return;
	}
	change_field(change, change->parts->data + node->offset, node->bytes, node_fields,
		     COUNT(node_fields));
}

/* Bytes of a payload, as libFuzzer would: of a frame its beginning more often than the rest. */
static void change_payload(struct change *change)
{
	unsigned number = pick(change, PART_CLUSTER);
	const struct part *part = &change->parts->all[number];
	size_t bytes;

	if (number == PARTS_MAX || part->bytes == 0)
		return;
	bytes = below(change, 2) && part->bytes > 24 ? 24 : part->bytes;
	LLVMFuzzerMutate(change->parts->data + part->offset, bytes, bytes);
}

/* Bytes more or fewer, or other ones, in any part: what points behind them follows. */
static void splice_part(struct change *change)
{
	static const enum part_kind kinds[] = {PART_HEADER,   PART_HEADER,  PART_METADATA,
					       PART_METADATA, PART_CLUSTER, PART_ROOT,
					       PART_FILES,    PART_FILES};
	unsigned number = pick(change, kinds[below(change, COUNT(kinds))]);
	const struct part *part = &change->parts->all[number];
	uint8_t bytes[2048];
	size_t at, remove, insert;

	if (number == PARTS_MAX)
		return;
	at = below(change, part->bytes + 1);
	if (part->kind == PART_HEADER && at < LR_MAGIC_BYTES && part->bytes > LR_MAGIC_BYTES)
		at = LR_MAGIC_BYTES;
	remove = below(change, part->bytes - at + 1);
	if (remove > sizeof(bytes) / 2)
		remove = below(change, 64);
	memcpy(bytes, change->parts->data + part->offset + at, remove);
	insert = remove && below(change, 8)
			 ? LLVMFuzzerMutate(bytes, remove, remove + below(change, 64))
			 : below(change, 40);
	parts_splice(change->parts, number, at, remove, bytes, insert);
}

/* A record twice, elsewhere, or not at all. */
static void change_records(struct change *change)
{
	struct parts *parts = change->parts;
	unsigned from = (unsigned)below(change, parts->count);
	unsigned to = (unsigned)below(change, parts->count);
	static uint8_t record[65536];
	size_t bytes;

	if (parts->count == 0)
		return;
	bytes = parts->all[from].offset + parts->all[from].bytes - parts->all[from].record;
	if (bytes > sizeof(record))
		return;
	memcpy(record, parts->data + parts->all[from].record, bytes);
	if (below(change, 2))
		parts_insert_record(parts, to, record, bytes);
	else
		parts_remove_record(parts, from);
}

/* What a mutator without knowledge does, and a file that is cut short. */
static void change_anything(struct change *change)
{
	struct parts *parts = change->parts;

	if (below(change, 4) == 0)
		parts->bytes = below(change, parts->bytes + 1);
	else
		parts->bytes = LLVMFuzzerMutate(parts->data, parts->bytes, PARTS_BYTES);
	parts_find(parts);
}

static void change_once(struct change *change)
{
	static void (*const changes[])(struct change *) = {
		change_footer, change_root,  change_region,  change_region,  change_region_table,
		change_sizes,  change_entry, change_entry,   change_entry,   copy_entry,
		copy_entry,    change_node,  change_node,    change_payload, change_payload,
		splice_part,   splice_part,  change_records,
	};

	if (change->parts->count == 0 || below(change, 64) == 0)
		change_anything(change);
	else
		changes[below(change, COUNT(changes))](change);
}

static struct parts *take_apart(unsigned which, const uint8_t *data, size_t bytes)
{
	struct parts *parts = &images[which];

	parts->data = room[which];
	parts->bytes = bytes < PARTS_BYTES ? bytes : PARTS_BYTES;
	memcpy(parts->data, data, parts->bytes);
	parts_find(parts);
	return parts;
}

/* Put right what is to be, and hand it over: 0 bytes if it grew too long. */
static size_t finish(struct change *change, uint8_t *made, size_t max_bytes)
{
	struct parts *parts = change->parts;

	if (below(change, 4) < (change->wants_recount ? 3 : 1))
		parts_recount(parts);
	if (below(change, 16))
		parts_seal(parts, &change->random);
	if (parts->bytes > max_bytes)
		return 0;
	memcpy(made, parts->data, parts->bytes);
	return parts->bytes;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max_bytes, unsigned seed)
{
	struct change change = {.parts = take_apart(0, data, bytes), .random = seed};
	unsigned count = 1u << below(&change, 3);
	size_t made;

	for (unsigned i = 0; i < count; i++)
		change_once(&change);
	made = finish(&change, data, max_bytes);
	return made ? made : bytes;
}

/* A part of the other image in the place of one of its kind. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *one, size_t one_bytes, const uint8_t *other,
				 size_t other_bytes, uint8_t *made, size_t max_bytes, unsigned seed)
{
	struct change change = {.parts = take_apart(0, one, one_bytes), .random = seed};
	struct change from = {.parts = take_apart(1, other, other_bytes), .random = ~seed};
	enum part_kind kind = (enum part_kind)below(&change, PART_FOOTER);
	unsigned to = pick(&change, kind), source = pick(&from, kind);
	const struct part *part = &from.parts->all[source];

	if (to == PARTS_MAX || source == PARTS_MAX)
		return 0;
	parts_splice(change.parts, to, 0, change.parts->all[to].bytes,
		     from.parts->data + part->offset, part->bytes);
	return finish(&change, made, max_bytes);
}
