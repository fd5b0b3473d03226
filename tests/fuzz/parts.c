#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "parts.h"

#include <string.h>

#include "format.h"
#include "lazyrestore.h"

static const struct {
	const char *head;
	size_t bytes;
	enum part_kind kind;
} heads[] = {
	{"\x81\xa7"
	 "cluster",
	 9, PART_CLUSTER},
	{"\x81\xa5"
	 "index",
	 7, PART_NODE},
	{"\x81\xa8"
	 "metadata",
	 10, PART_METADATA},
	{"\x81\xa5"
	 "files",
	 7, PART_FILES},
	{"\x81\xa4"
	 "root",
	 6, PART_ROOT},
	{"\x81\xa6"
	 "footer",
	 8, PART_FOOTER},
};
#define HEADS (sizeof(heads) / sizeof(heads[0]))

uint64_t parts_random(uint64_t *state)
{
	uint64_t value = *state += 0x9e3779b97f4a7c15ull;

	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ value >> 27) * 0x94d049bb133111ebull;
	return value ^ value >> 31;
}

uint64_t parts_get(const uint8_t *from, unsigned width_bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < width_bytes; i++)
		value |= (uint64_t)from[i] << (8 * i);
	return value;
}

void parts_put(uint8_t *to, uint64_t value, unsigned width_bytes)
{
	for (unsigned i = 0; i < width_bytes; i++)
		to[i] = (uint8_t)(value >> (8 * i));
}

/* The msgpack bin that begins at `at`: the width of its length (0: none), and that length. */
static unsigned bin_at(const struct parts *parts, size_t at, uint64_t *ret_bytes)
{
	unsigned width;

	if (at >= parts->bytes || parts->data[at] < 0xc4 || parts->data[at] > 0xc6)
		return 0;
	width = 1u << (parts->data[at] - 0xc4);
	if (width >= parts->bytes - at)
		return 0;
	*ret_bytes = 0;
	for (unsigned i = 0; i < width; i++)
		*ret_bytes = *ret_bytes << 8 | parts->data[at + 1 + i];
	return width;
}

static uint8_t *footer_at(const struct parts *parts)
{
	return parts->footer ? parts->data + parts->footer->offset : NULL;
}

/* The record at `at`, if one is there that lies in the file. */
static bool parse_record(const struct parts *parts, size_t at, struct part *ret_part)
{
	size_t rest = parts->bytes - at;

	for (unsigned i = 0; i < HEADS; i++) {
		uint64_t bytes = 0;
		unsigned width;

		if (rest <= heads[i].bytes
		    || memcmp(parts->data + at, heads[i].head, heads[i].bytes) != 0)
			continue;
		*ret_part = (struct part){.kind = heads[i].kind, .record = at};
		if (heads[i].kind == PART_METADATA) {
			/* An array, whose length the footer has. */
			ret_part->offset = at + heads[i].bytes;
			bytes = parts->footer
					? parts_get(footer_at(parts) + LR_FOOTER_METADATA_SIZE, 4)
					: 1;
		} else {
			width = bin_at(parts, at + heads[i].bytes, &bytes);
			if (width == 0)
				return false;
			ret_part->offset = at + heads[i].bytes + 1 + width;
		}
		ret_part->bytes = bytes;
		return bytes <= parts->bytes - ret_part->offset;
	}
	return false;
}

void parts_find(struct parts *parts)
{
	size_t at = 0, end = parts->bytes;
	struct part *footer = &parts->all[0];
	struct part found;

	parts->count = 0;
	parts->root = parts->footer = NULL;
	parts->entry_bytes = 32;
	if (parts->bytes > LR_FOOTER_RECORD_BYTES) {
		uint64_t header, pages;

		*footer = (struct part){PART_FOOTER, end - LR_FOOTER_RECORD_BYTES,
					end - LR_FOOTER_BYTES, LR_FOOTER_BYTES};
		parts->footer = footer;
		parts->count = 1;
		end = footer->record;
		header = parts_get(footer_at(parts) + LR_FOOTER_HEADER_BYTES, 4);
		pages = parts_get(footer_at(parts) + LR_FOOTER_CLUSTER_SIZE, 4)
			/ (parts_get(footer_at(parts) + LR_FOOTER_PAGE_SIZE, 4) | 1);
		if (pages <= LR_PAGES_PER_CLUSTER_MAX)
			parts->entry_bytes = LR_ENTRY_HEAD_BYTES + 8 * (uint32_t)(pages / 32 + 1);
		if (header > 0 && header <= end) {
			parts->all[parts->count++] = (struct part){PART_HEADER, 0, 0, header};
			at = header;
		}
	}
	while (at < end && parts->count < PARTS_MAX) {
		if (!parse_record(parts, at, &found)) {
			at++;
			continue;
		}
		if (found.kind == PART_ROOT && found.bytes >= LR_ROOT_BYTES)
			parts->root = &parts->all[parts->count];
		parts->all[parts->count++] = found;
		at = found.offset + found.bytes;
	}
}

/* ---- Changing lengths ---- */

static void shift(uint8_t *offset_field, size_t from, uint64_t delta)
{
	uint64_t value = parts_get(offset_field, 8);

	if (value >= from && value < PARTS_BYTES)
		parts_put(offset_field, value + delta, 8);
}

static void resize_where(uint8_t *entry, size_t offset, uint64_t delta)
{
	if (parts_get(entry + LR_ENTRY_OFFSET, 8) == offset)
		parts_put(entry + LR_ENTRY_SIZE, parts_get(entry + LR_ENTRY_SIZE, 4) + delta, 4);
}

/* Every reference and entry of the image, one after another. */
static uint8_t *next_entry(const struct parts *parts, unsigned *part, size_t *at)
{
	for (; *part < parts->count; (*part)++, *at = 0) {
		const struct part *node = &parts->all[*part];
		uint32_t size;

		if (node == parts->root && *at == 0) {
			*at = 1;
			return parts->data + node->offset + LR_ROOT_TREE;
		}
		if (node->kind != PART_NODE || node->bytes < LR_NODE_HEAD_BYTES)
			continue;
		size = parts_get(parts->data + node->offset, 4) ? LR_REF_BYTES : parts->entry_bytes;
		if (*at == 0)
			*at = LR_NODE_HEAD_BYTES;
		if (*at + size <= node->bytes) {
			*at += size;
			return parts->data + node->offset + *at - size;
		}
	}
	return NULL;
}

/* What is at `at` and behind moves by `delta`; `of` (or NULL) grows by it. */
static void follow(struct parts *parts, size_t at, uint64_t delta, const struct part *of)
{
	unsigned part = 0;
	size_t within = 0;
	uint8_t *entry, *footer = footer_at(parts);

	while ((entry = next_entry(parts, &part, &within))) {
		if (of)
			resize_where(entry, of->offset, delta);
		shift(entry + LR_ENTRY_OFFSET, at, delta);
	}
	if (!footer)
		return;
	if (of && of->kind == PART_HEADER)
		parts_put(footer + LR_FOOTER_HEADER_BYTES, of->bytes + delta, 4);
	if (of && of->kind == PART_ROOT)
		parts_put(footer + LR_FOOTER_ROOT_SIZE, of->bytes + delta, 4);
	if (of && of->kind == PART_METADATA)
		parts_put(footer + LR_FOOTER_METADATA_SIZE, of->bytes + delta, 4);
	if (of && of->kind == PART_FILES)
		parts_put(footer + LR_FOOTER_FILES_SIZE, of->bytes + delta, 4);
	if (parts_get(footer + LR_FOOTER_FILES_OFFSET, 8) != 0)
		shift(footer + LR_FOOTER_FILES_OFFSET, at, delta);
	shift(footer + LR_FOOTER_ROOT_OFFSET, at, delta);
	shift(footer + LR_FOOTER_METADATA_OFFSET, at, delta);
	shift(footer + LR_FOOTER_FILE_BYTES, at, delta);
}

static bool replace(struct parts *parts, size_t at, size_t remove, const uint8_t *insert,
		    size_t insert_bytes)
{
	if (parts->bytes - remove + insert_bytes > PARTS_BYTES)
		return false;
	memmove(parts->data + at + insert_bytes, parts->data + at + remove,
		parts->bytes - at - remove);
	if (insert_bytes)
		memcpy(parts->data + at, insert, insert_bytes);
	parts->bytes += insert_bytes - remove;
	parts_find(parts);
	return true;
}

bool parts_splice(struct parts *parts, unsigned number, size_t at, size_t remove,
		  const uint8_t *insert, size_t insert_bytes)
{
	struct part *part = &parts->all[number];
	uint64_t delta = (uint64_t)insert_bytes - remove, bytes = part->bytes + delta;
	unsigned width = 0;

	if (part->kind == PART_FOOTER || at > part->bytes || remove > part->bytes - at
	    || parts->bytes - remove + insert_bytes > PARTS_BYTES)
		return false;
	if (part->kind != PART_HEADER && part->kind != PART_METADATA) {
		for (width = 1; width <= 4; width *= 2)
			if (part->offset > width
			    && parts->data[part->offset - width - 1]
				       == 0xc4 + (width == 4 ? 2 : width - 1))
				break;
		if (width > 4 || (width < 4 && bytes >> (8 * width)))
			return false;
	}
	/* Before anything moves; then the length in front of the payload. */
	follow(parts, part->offset + at + (at == 0), delta, part);
	for (unsigned i = 0; i < width; i++)
		parts->data[part->offset - 1 - i] = (uint8_t)(bytes >> (8 * i));
	return replace(parts, part->offset + at, remove, insert, insert_bytes);
}

bool parts_insert_record(struct parts *parts, unsigned number, const uint8_t *record, size_t bytes)
{
	size_t at = parts->all[number].record;

	if (parts->bytes + bytes > PARTS_BYTES)
		return false;
	follow(parts, at, bytes, NULL);
	return replace(parts, at, 0, record, bytes);
}

bool parts_remove_record(struct parts *parts, unsigned number)
{
	const struct part *part = &parts->all[number];
	size_t end = part->offset + part->bytes;

	if (part->kind == PART_FOOTER)
		return false;
	follow(parts, end, (uint64_t)part->record - end, NULL);
	return replace(parts, part->record, end - part->record, NULL, 0);
}

/* ---- What follows from other numbers ---- */

static void recount_regions(struct parts *parts)
{
	uint8_t *root = parts->data + parts->root->offset;
	uint64_t size = parts_get(footer_at(parts) + LR_FOOTER_CLUSTER_SIZE, 4);
	uint64_t regions = parts_get(root + LR_ROOT_REGION_COUNT, 4);
	uint64_t clusters = 0, logical = 0, height = 1;

	if (size == 0 || regions > (parts->root->bytes - LR_ROOT_BYTES) / LR_REGION_BYTES)
		return;
	for (uint64_t i = 0; i < regions; i++) {
		uint8_t *region = root + LR_ROOT_BYTES + i * LR_REGION_BYTES;
		uint64_t length = parts_get(region + LR_REGION_LENGTH, 8);
		uint64_t count = length / size + (length % size != 0);

		parts_put(region + LR_REGION_FIRST_CLUSTER, clusters, 8);
		parts_put(region + LR_REGION_CLUSTER_COUNT, count, 8);
		clusters += count;
		logical += length;
	}
	while (height < 8 && clusters > 1ull << (8 * height))
		height++;
	parts_put(root + LR_ROOT_NAMES_BYTES,
		  parts->root->bytes - LR_ROOT_BYTES - regions * LR_REGION_BYTES, 4);
	parts_put(root + LR_ROOT_TREE_HEIGHT, height, 4);
	parts_put(root + LR_ROOT_CLUSTER_COUNT, clusters, 8);
	parts_put(root + LR_ROOT_LOGICAL_BYTES, logical, 8);
}

/* A walk of the tree, by what the references say, as far as it stays in the file. */
struct tree_walk {
	struct parts *parts;
	uint64_t *random;
	unsigned visits;
	bool recounts; /* else it seals */
};

static bool is_left(const struct tree_walk *walk)
{
	return walk->random && parts_random(walk->random) % 32 == 0;
}

static void walk_tree(struct tree_walk *walk, uint8_t *ref, unsigned height, uint64_t first)
{
	struct parts *parts = walk->parts;
	uint64_t offset = parts_get(ref + LR_ENTRY_OFFSET, 8);
	uint64_t bytes = parts_get(ref + LR_ENTRY_SIZE, 4);
	uint32_t size = height > 1 ? LR_REF_BYTES : parts->entry_bytes;
	uint8_t kind = ref[LR_ENTRY_KIND];

	if (offset > parts->bytes || bytes > parts->bytes - offset || offset == 0
	    || walk->visits++ > 4096)
		return;
	if (height == 0 ? kind != LR_CLUSTER_ZSTD && kind != LR_CLUSTER_RAW : kind != LR_REF_NODE)
		return;
	if (height > 0 && bytes >= LR_NODE_HEAD_BYTES) {
		uint8_t *node = parts->data + offset;
		uint64_t count = (bytes - LR_NODE_HEAD_BYTES) / size;

		if (walk->recounts) {
			parts_put(node + LR_NODE_LEVEL, height - 1, 4);
			parts_put(node + LR_NODE_COUNT, count, 4);
			parts_put(node + LR_NODE_FIRST_CLUSTER, first, 8);
		}
		for (uint64_t i = 0; i < count && i < 256; i++)
			walk_tree(walk, node + LR_NODE_HEAD_BYTES + i * size, height - 1,
				  first + (i << (8 * (height - 1))));
	}
	if (!walk->recounts && !is_left(walk))
		parts_put(ref + LR_ENTRY_CRC, lr_crc32c(0, parts->data + offset, bytes), 4);
}

static void walk_whole_tree(struct tree_walk *walk)
{
	uint8_t *root = walk->parts->data + walk->parts->root->offset;
	uint64_t height = parts_get(root + LR_ROOT_TREE_HEIGHT, 4);

	if (height >= 1 && height <= LR_TREE_HEIGHT_MAX)
		walk_tree(walk, root + LR_ROOT_TREE, (unsigned)height, 0);
}

void parts_recount(struct parts *parts)
{
	struct tree_walk walk = {.parts = parts, .recounts = true};

	if (!parts->root || !parts->footer)
		return;
	recount_regions(parts);
	walk_whole_tree(&walk);
	parts_put(footer_at(parts) + LR_FOOTER_FILE_BYTES, parts->bytes, 8);
}

/* The checksum of what two fields of the footer name. */
static void seal_part(struct tree_walk *walk, uint64_t offset, uint64_t bytes, unsigned crc_at)
{
	struct parts *parts = walk->parts;

	if (offset <= parts->bytes && bytes <= parts->bytes - offset && !is_left(walk))
		parts_put(footer_at(parts) + crc_at, lr_crc32c(0, parts->data + offset, bytes), 4);
}

void parts_seal(struct parts *parts, uint64_t *random)
{
	struct tree_walk walk = {.parts = parts, .random = random};
	uint8_t *footer = footer_at(parts);

	if (!footer)
		return;
	if (parts->root)
		walk_whole_tree(&walk);
	seal_part(&walk, 0, parts_get(footer + LR_FOOTER_HEADER_BYTES, 4), LR_FOOTER_HEADER_CRC);
	seal_part(&walk, parts_get(footer + LR_FOOTER_ROOT_OFFSET, 8),
		  parts_get(footer + LR_FOOTER_ROOT_SIZE, 4), LR_FOOTER_ROOT_CRC);
	seal_part(&walk, parts_get(footer + LR_FOOTER_METADATA_OFFSET, 8),
		  parts_get(footer + LR_FOOTER_METADATA_SIZE, 4), LR_FOOTER_METADATA_CRC);
	if (parts_get(footer + LR_FOOTER_FILES_SIZE, 4) != 0)
		seal_part(&walk, parts_get(footer + LR_FOOTER_FILES_OFFSET, 8),
			  parts_get(footer + LR_FOOTER_FILES_SIZE, 4), LR_FOOTER_FILES_CRC);
	if (!is_left(&walk))
		parts_put(footer + LR_FOOTER_CRC, lr_crc32c(0, footer, LR_FOOTER_CRC), 4);
}
