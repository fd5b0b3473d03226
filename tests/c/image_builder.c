#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "image_builder.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "format.h"

typedef size_t compress_fn(void *, size_t, const void *, size_t, int);

static void die(const char *what)
{
	fprintf(stderr, "image_builder: %s\n", what);
	abort();
}

void image_put(uint8_t *to, uint64_t value, unsigned width_bytes)
{
	for (unsigned i = 0; i < width_bytes; i++)
		to[i] = (uint8_t)(value >> (8 * i));
}

uint64_t image_get(const uint8_t *from, unsigned width_bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < width_bytes; i++)
		value |= (uint64_t)from[i] << (8 * i);
	return value;
}

uint64_t image_random(uint64_t *state)
{
	uint64_t value = *state += 0x9e3779b97f4a7c15ull;

	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ value >> 27) * 0x94d049bb133111ebull;
	return value ^ value >> 31;
}

/* zstd's own, as dumps are made with: but the core does not link it either. */
static size_t compress(void *to, size_t room, const void *from, size_t bytes)
{
	static compress_fn *function;

	if (!function) {
		void *library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);

		function = library ? (compress_fn *)dlsym(library, "ZSTD_compress") : NULL;
		if (!function)
			die("no libzstd.so.1");
	}
	return function(to, room, from, bytes, 3);
}

void image_init(struct image *image, uint32_t page_size, uint32_t cluster_size)
{
	memset(image, 0, sizeof(*image));
	image->page_size = page_size;
	image->cluster_size = cluster_size;
	image->fd = -1;
}

static void fill_page(uint8_t *page, uint32_t bytes, char letter, uint64_t seed)
{
	if (letter == 'r') {
		for (uint32_t i = 0; i < bytes; i += 8)
			image_put(page + i, image_random(&seed), 8);
	} else {
		for (uint32_t i = 0; i < bytes; i += 8)
			image_put(page + i, seed << 20 | i % 256 | 1, 8);
	}
}

const struct image_region *image_add(struct image *image, const char *name, uint64_t length,
				     const char *pattern)
{
	struct image_region *region = &image->regions[image->region_count];
	uint64_t pages = length / image->page_size + (length % image->page_size != 0);

	if (image->region_count++ == IMAGE_REGIONS_MAX)
		die("too many regions");
	region->name = name;
	region->pattern = pattern;
	region->length = length;
	region->first_cluster = image->cluster_count;
	region->clusters = length / image->cluster_size + (length % image->cluster_size != 0);
	image->cluster_count += region->clusters;
	if (strcmp(pattern, "z") == 0 || strcmp(pattern, "h") == 0)
		return region;
	region->bytes = calloc(pages + 1, image->page_size);
	region->states = calloc(pages + 1, 1);
	if (!region->bytes || !region->states)
		die("out of memory");
	for (uint64_t page = 0; page < pages; page++) {
		char letter = pattern[page % strlen(pattern)];
		uint8_t *bytes = region->bytes + page * image->page_size;

		region->states[page] = letter == 'h'   ? LR_PAGE_HOLE
				       : letter == 'z' ? LR_PAGE_ZERO
						       : LR_PAGE_DATA;
		if (region->states[page] == LR_PAGE_DATA)
			fill_page(bytes, image->page_size, letter,
				  page + 1000 * image->region_count);
	}
	if (length % image->page_size && pages)
		memset(region->bytes + length, 0, pages * image->page_size - length);
	return region;
}

static uint8_t *grow(struct image *image, uint64_t bytes)
{
	if (image->bytes + bytes > image->room) {
		image->room = 2 * (image->bytes + bytes);
		image->file = realloc(image->file, image->room);
		if (!image->file)
			die("out of memory");
	}
	memset(image->file + image->bytes, 0, bytes);
	image->bytes += bytes;
	return image->file + image->bytes - bytes;
}

/* Append {key: bin}: gives the payload's offset. */
static uint64_t append(struct image *image, const char *key, const void *payload, uint32_t bytes)
{
	size_t key_bytes = strlen(key);
	uint8_t *record = grow(image, 2 + key_bytes + 5 + bytes);

	record[0] = 0x81;
	record[1] = (uint8_t)(0xa0 | key_bytes);
	memcpy(record + 2, key, key_bytes);
	record[2 + key_bytes] = 0xc6;
	for (int i = 0; i < 4; i++)
		record[3 + key_bytes + (size_t)i] = (uint8_t)(bytes >> (24 - 8 * i));
	memcpy(record + 7 + key_bytes, payload, bytes);
	return image->bytes - bytes;
}

static struct image_region *region_of(struct image *image, uint64_t cluster)
{
	for (uint32_t i = 0; i < image->region_count; i++)
		if (cluster - image->regions[i].first_cluster < image->regions[i].clusters)
			return &image->regions[i];
	die("no such cluster");
	return NULL;
}

/* Compress a cluster's data pages, write its record, and say in its leaf entry where that is. */
static void store_cluster(struct image *image, uint8_t *data, uint64_t bytes, uint32_t width,
			  uint8_t *entry)
{
	uint8_t *plain = malloc(bytes), *frame = malloc(2ull * image->cluster_size);
	uint64_t frame_bytes;

	if (!plain || !frame)
		die("out of memory");
	memcpy(plain, data, bytes);
	for (uint64_t i = 0; i < bytes && width; i++)
		data[i % width * (bytes / width) + i / width] = plain[i];
	frame_bytes = compress(frame, 2ull * image->cluster_size, data, bytes);
	bool raw = frame_bytes >= bytes;
	uint32_t stored = (uint32_t)(raw ? bytes : frame_bytes);

	image_put(entry + LR_ENTRY_OFFSET, append(image, "cluster", raw ? plain : frame, stored),
		  8);
	image_put(entry + LR_ENTRY_SIZE, stored, 4);
	image_put(entry + LR_ENTRY_CRC, lr_crc32c(0, raw ? plain : frame, stored), 4);
	entry[LR_ENTRY_KIND] = raw ? LR_CLUSTER_RAW : LR_CLUSTER_ZSTD;
	entry[LR_ENTRY_PLANES] = (uint8_t)(raw ? 0 : width);
	free(plain);
	free(frame);
}

/* Write a cluster's record, if it has data, and fill its leaf entry. */
static void build_cluster(struct image *image, uint64_t cluster, uint8_t *entry)
{
	struct image_region *region = region_of(image, cluster);
	uint32_t width = 0, page_size = image->page_size,
		 per_cluster = image->cluster_size / page_size;
	uint64_t first = (cluster - region->first_cluster) * per_cluster;
	uint64_t pages = region->length / page_size + (region->length % page_size != 0) - first;
	uint8_t *data = calloc(1, image->cluster_size);
	uint64_t zeros = 0, data_bytes = 0;

	if (!data)
		die("out of memory");
	if (pages > per_cluster)
		pages = per_cluster;
	for (uint64_t page = 0; page < pages; page++) {
		uint8_t state = region->states            ? region->states[first + page]
				: *region->pattern == 'z' ? LR_PAGE_ZERO
							  : LR_PAGE_HOLE;

		entry[LR_ENTRY_STATES + page / 4] |= (uint8_t)(state << (2 * (page % 4)));
		zeros += state == LR_PAGE_ZERO;
		if (state == LR_PAGE_DATA) {
			char letter = region->pattern[(first + page) % strlen(region->pattern)];

			if (width == 0 && letter >= '2' && letter <= '8')
				width = (uint32_t)(letter - '0');
			memcpy(data + data_bytes, region->bytes + (first + page) * page_size,
			       page_size);
			data_bytes += page_size;
		}
	}
	if (data_bytes == 0) {
		entry[LR_ENTRY_KIND] = zeros == 0       ? LR_CLUSTER_HOLE
				       : zeros == pages ? LR_CLUSTER_ZERO
							: LR_CLUSTER_MIXED;
	} else {
		store_cluster(image, data, data_bytes, width, entry);
		if (region->planes == 0)
			region->planes = entry[LR_ENTRY_PLANES];
	}
	free(data);
}

/* LR_REF_HOLE or LR_REF_ZERO where all clusters of a span are that, and LR_REF_NODE otherwise. */
static int kind_of_span(const struct image *image, uint64_t first, uint64_t count)
{
	int kind = -1;

	for (uint32_t i = 0; i < image->region_count; i++) {
		const struct image_region *region = &image->regions[i];
		int its = region->states            ? LR_REF_NODE
			  : *region->pattern == 'z' ? LR_REF_ZERO
						    : LR_REF_HOLE;

		if (region->clusters == 0 || region->first_cluster >= first + count
		    || region->first_cluster + region->clusters <= first)
			continue;
		if (kind >= 0 && kind != its)
			return LR_REF_NODE;
		kind = its;
	}
	return kind < 0 ? LR_REF_HOLE : kind;
}

static void build_node(struct image *image, uint32_t level, uint64_t first, uint8_t *ref)
{
	uint64_t below = 1ull << (8 * level), rest = image->cluster_count - first;
	uint64_t span = rest / 256 < below ? rest : 256 * below;
	uint32_t count = (uint32_t)((span + below - 1) / below);
	uint32_t words = (image->cluster_size / image->page_size + 31) / 32;
	uint32_t entry_bytes = level ? LR_REF_BYTES : LR_ENTRY_HEAD_BYTES + 8 * words;
	uint32_t bytes = LR_NODE_HEAD_BYTES + count * entry_bytes;
	uint8_t *node;

	ref[LR_ENTRY_KIND] = (uint8_t)kind_of_span(image, first, span);
	if (ref[LR_ENTRY_KIND] != LR_REF_NODE)
		return;
	node = calloc(1, bytes);
	if (!node)
		die("out of memory");
	image_put(node + LR_NODE_LEVEL, level, 4);
	image_put(node + LR_NODE_COUNT, count, 4);
	image_put(node + LR_NODE_FIRST_CLUSTER, first, 8);
	for (uint32_t i = 0; i < count; i++) {
		uint8_t *entry = node + LR_NODE_HEAD_BYTES + i * entry_bytes;

		if (level)
			build_node(image, level - 1, first + i * below, entry);
		else
			build_cluster(image, first + i, entry);
	}
	image_put(ref + LR_ENTRY_OFFSET, append(image, "index", node, bytes), 8);
	image_put(ref + LR_ENTRY_SIZE, bytes, 4);
	image_put(ref + LR_ENTRY_CRC, lr_crc32c(0, node, bytes), 4);
	if (level == 0 && !image->first_leaf_offset)
		image->first_leaf_offset = image_get(ref + LR_ENTRY_OFFSET, 8);
	free(node);
}

/* An array of empty maps. */
static void build_metadata(struct image *image)
{
	static const char key[] = "\x81\xa8"
				  "metadata";

	memcpy(grow(image, sizeof(key) - 1), key, sizeof(key) - 1);
	image->metadata_offset = image->bytes;
	memset(grow(image, 1 + image->region_count), 0x80, 1 + image->region_count);
	image->file[image->metadata_offset] = (uint8_t)(0x90 | image->region_count);
}

static void build_root(struct image *image)
{
	uint32_t names_bytes = 0, bytes;
	uint64_t logical = 0;
	uint8_t *root, *name;

	for (uint32_t i = 0; i < image->region_count; i++)
		names_bytes += (uint32_t)strlen(image->regions[i].name);
	bytes = LR_ROOT_BYTES + image->region_count * LR_REGION_BYTES + names_bytes;
	root = calloc(1, bytes);
	if (!root)
		die("out of memory");
	build_node(image, image->height - 1, 0, root + LR_ROOT_TREE);
	build_metadata(image);
	name = root + LR_ROOT_BYTES + image->region_count * LR_REGION_BYTES;
	for (uint32_t i = 0; i < image->region_count; i++) {
		const struct image_region *region = &image->regions[i];
		uint8_t *to = root + LR_ROOT_BYTES + i * LR_REGION_BYTES;
		size_t name_bytes = strlen(region->name);

		image_put(to + LR_REGION_LENGTH, region->length, 8);
		image_put(to + LR_REGION_FIRST_CLUSTER, region->first_cluster, 8);
		image_put(to + LR_REGION_CLUSTER_COUNT, region->clusters, 8);
		image_put(to + LR_REGION_NAME_OFFSET,
			  (uint64_t)(name - root) - LR_ROOT_BYTES
				  - image->region_count * LR_REGION_BYTES,
			  4);
		image_put(to + LR_REGION_NAME_BYTES, name_bytes, 4);
		image_put(to + LR_REGION_PROTECTION, 3, 4);
		to[LR_REGION_CODEC] = LR_REGION_CODEC_ZSTD;
		to[LR_REGION_FILTER] = region->planes ? LR_REGION_FILTER_PLANES : 0;
		to[LR_REGION_PLANES] = (uint8_t)region->planes;
		memcpy(name, region->name, name_bytes);
		name += name_bytes;
		logical += region->length;
	}
	image_put(root + LR_ROOT_REGION_COUNT, image->region_count, 4);
	image_put(root + LR_ROOT_NAMES_BYTES, names_bytes, 4);
	image_put(root + LR_ROOT_TREE_HEIGHT, image->height, 4);
	image_put(root + LR_ROOT_CLUSTER_COUNT, image->cluster_count, 8);
	image_put(root + LR_ROOT_LOGICAL_BYTES, logical, 8);
	image->root_offset = append(image, "root", root, bytes);
	free(root);
}

void image_build(struct image *image)
{
	static const char header[] = LR_MAGIC "\x81\xa7"
					      "version"
					      "\x01";
	uint64_t root_bytes;
	uint8_t *footer;

	image->height = 1;
	while (image->height < 8 && image->cluster_count > 1ull << (8 * image->height))
		image->height++;
	image->bytes = 0;
	image->first_leaf_offset = 0;
	memcpy(grow(image, sizeof(header) - 1), header, sizeof(header) - 1);
	build_root(image);
	root_bytes = image->bytes - image->root_offset;
	footer = grow(image, LR_FOOTER_RECORD_BYTES);
	memcpy(footer, LR_FOOTER_PREFIX, LR_FOOTER_PREFIX_BYTES);
	footer += LR_FOOTER_PREFIX_BYTES;
	image_put(footer + LR_FOOTER_VERSION, 1, 4);
	image_put(footer + LR_FOOTER_PAGE_SIZE, image->page_size, 4);
	image_put(footer + LR_FOOTER_CLUSTER_SIZE, image->cluster_size, 4);
	for (uint32_t i = 0; i < image->region_count; i++)
		if (image->regions[i].planes)
			image_put(footer + LR_FOOTER_CRITICAL, LR_FORMAT_PLANES, 8);
	image_put(footer + LR_FOOTER_HEADER_BYTES, sizeof(header) - 1, 4);
	image_put(footer + LR_FOOTER_FILE_BYTES, image->bytes, 8);
	image_put(footer + LR_FOOTER_ROOT_OFFSET, image->root_offset, 8);
	image_put(footer + LR_FOOTER_ROOT_SIZE, root_bytes, 4);
	image_put(footer + LR_FOOTER_METADATA_OFFSET, image->metadata_offset, 8);
	image_put(footer + LR_FOOTER_METADATA_SIZE, 1 + image->region_count, 4);
	image_reseal(image->file, image->bytes, false);
}

void image_publish(struct image *image)
{
	uint64_t done = 0;

	if (image->fd < 0)
		image->fd = memfd_create("image", MFD_CLOEXEC);
	if (image->fd < 0 || ftruncate(image->fd, (off_t)image->bytes) < 0)
		die("no memory file");
	while (done < image->bytes) {
		ssize_t put =
			pwrite(image->fd, image->file + done, image->bytes - done, (off_t)done);

		if (put <= 0)
			die("cannot write the memory file");
		done += (uint64_t)put;
	}
	snprintf(image->path, sizeof(image->path), "/proc/self/fd/%d", image->fd);
}

void image_fini(struct image *image)
{
	for (uint32_t i = 0; i < image->region_count; i++) {
		free(image->regions[i].bytes);
		free(image->regions[i].states);
	}
	free(image->file);
	if (image->fd >= 0)
		close(image->fd);
}

void image_make(struct image *image, uint32_t page_size, uint32_t cluster_size, uint64_t length,
		const char *pattern)
{
	image_init(image, page_size, cluster_size);
	image_add(image, "memory", length, pattern);
	image_build(image);
	image_publish(image);
}

uint64_t image_entry_offset(const struct image *image, uint64_t cluster)
{
	uint32_t words = (image->cluster_size / image->page_size + 31) / 32;

	return image->first_leaf_offset + LR_NODE_HEAD_BYTES
	       + cluster % 256 * (LR_ENTRY_HEAD_BYTES + 8 * words);
}

struct seal {
	uint8_t *file;
	uint64_t bytes;
	uint32_t words;
	bool clusters_too;
	unsigned nodes_left; /* a damaged tree may go in circles */
};

static bool fits(const struct seal *seal, uint64_t offset, uint64_t bytes)
{
	return offset <= seal->bytes && bytes <= seal->bytes - offset;
}

static void seal_node(struct seal *seal, uint8_t *ref, uint32_t level)
{
	uint64_t offset = image_get(ref + LR_ENTRY_OFFSET, 8);
	uint64_t bytes = image_get(ref + LR_ENTRY_SIZE, 4);
	uint64_t entry_bytes = level ? LR_REF_BYTES : LR_ENTRY_HEAD_BYTES + 8 * seal->words;

	if (ref[LR_ENTRY_KIND] != LR_REF_NODE || !fits(seal, offset, bytes)
	    || seal->nodes_left == 0)
		return;
	seal->nodes_left--;
	for (uint64_t at = LR_NODE_HEAD_BYTES; at + entry_bytes <= bytes; at += entry_bytes) {
		uint8_t *entry = seal->file + offset + at;
		uint64_t payload = image_get(entry + LR_ENTRY_OFFSET, 8);
		uint64_t payload_bytes = image_get(entry + LR_ENTRY_SIZE, 4);

		if (level)
			seal_node(seal, entry, level - 1);
		else if (seal->clusters_too && entry[LR_ENTRY_KIND] >= LR_CLUSTER_ZSTD
			 && entry[LR_ENTRY_KIND] <= LR_CLUSTER_RAW
			 && fits(seal, payload, payload_bytes))
			image_put(entry + LR_ENTRY_CRC,
				  lr_crc32c(0, seal->file + payload, payload_bytes), 4);
	}
	image_put(ref + LR_ENTRY_CRC, lr_crc32c(0, seal->file + offset, bytes), 4);
}

static void seal_part(struct seal *seal, uint8_t *footer, uint64_t offset, uint64_t bytes,
		      unsigned crc_field)
{
	if (fits(seal, offset, bytes))
		image_put(footer + crc_field, lr_crc32c(0, seal->file + offset, bytes), 4);
}

void image_reseal(uint8_t *file, uint64_t bytes, bool clusters_too)
{
	struct seal seal = {file, bytes, 1, clusters_too, 1000};
	uint8_t *footer = file + bytes - LR_FOOTER_BYTES;
	uint64_t root, root_bytes, page_size, cluster_size;

	if (bytes < LR_FOOTER_RECORD_BYTES)
		return;
	page_size = image_get(footer + LR_FOOTER_PAGE_SIZE, 4);
	cluster_size = image_get(footer + LR_FOOTER_CLUSTER_SIZE, 4);
	if (page_size && cluster_size / page_size <= LR_PAGES_PER_CLUSTER_MAX)
		seal.words = (uint32_t)((cluster_size / page_size + 31) / 32);
	root = image_get(footer + LR_FOOTER_ROOT_OFFSET, 8);
	root_bytes = image_get(footer + LR_FOOTER_ROOT_SIZE, 4);
	if (root_bytes >= LR_ROOT_BYTES && fits(&seal, root, root_bytes)) {
		uint64_t height = image_get(file + root + LR_ROOT_TREE_HEIGHT, 4);

		if (height >= 1 && height <= LR_TREE_HEIGHT_MAX)
			seal_node(&seal, file + root + LR_ROOT_TREE, (uint32_t)height - 1);
	}
	seal_part(&seal, footer, root, root_bytes, LR_FOOTER_ROOT_CRC);
	seal_part(&seal, footer, 0, image_get(footer + LR_FOOTER_HEADER_BYTES, 4),
		  LR_FOOTER_HEADER_CRC);
	seal_part(&seal, footer, image_get(footer + LR_FOOTER_METADATA_OFFSET, 8),
		  image_get(footer + LR_FOOTER_METADATA_SIZE, 4), LR_FOOTER_METADATA_CRC);
	image_put(footer + LR_FOOTER_CRC, lr_crc32c(0, footer, LR_FOOTER_CRC), 4);
}
