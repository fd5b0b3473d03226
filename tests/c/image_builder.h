/*
 * image_builder: images made in C, for the tests of the core. What docs/format.md says is written
 * down here a second time, independently of csrc/ and of the Python writer.
 *
 * A region's pages follow a pattern of letters, repeated: d data that compresses, r data that does
 * not, z zero, h hole. A region of one letter z or h may be of any length: it costs nothing. A page
 * of a digit, 2, 4 or 8, is one of d, and has its cluster stored as byte planes of that width.
 *
 * Not part of the harness: what goes wrong here ends the process with a message.
 */
#ifndef LR_TESTS_IMAGE_BUILDER_H
#define LR_TESTS_IMAGE_BUILDER_H

#include <stdbool.h>
#include <stdint.h>

#include "lazyrestore.h"

#define IMAGE_REGIONS_MAX 8

struct image_region {
	const char *name;
	const char *pattern;
	uint64_t length;
	uint64_t first_cluster;
	uint64_t clusters;
	uint32_t planes; /* of its first cluster that has any */
	uint8_t *bytes;  /* what must be restored: whole pages; NULL where all is zero */
	uint8_t *states; /* a byte a page; NULL where all are alike */
};

struct image {
	uint32_t page_size;
	uint32_t cluster_size;
	uint32_t height;
	uint32_t region_count;
	uint64_t cluster_count;
	struct image_region regions[IMAGE_REGIONS_MAX];
	uint8_t *file; /* what image_build made */
	uint64_t bytes;
	uint64_t room;
	uint64_t root_offset; /* of payloads in it */
	uint64_t metadata_offset;
	uint64_t first_leaf_offset;
	int fd; /* memory file that image_publish made, or -1 */
	char path[32];
};

void image_init(struct image *image, uint32_t page_size, uint32_t cluster_size);
const struct image_region *image_add(struct image *image, const char *name, uint64_t length,
				     const char *pattern);
/* Make the file in memory. */
void image_build(struct image *image);
/* Write it to a memory file, made anew or written over, that can be opened as image->path. */
void image_publish(struct image *image);
void image_fini(struct image *image);

/* Make an image of one region and publish it. */
void image_make(struct image *image, uint32_t page_size, uint32_t cluster_size, uint64_t length,
		const char *pattern);

/* Compute anew the checksums of footer, header, metadata, root and nodes, and if asked of the
 * clusters, as far as the places of the parts make sense. */
void image_reseal(uint8_t *file, uint64_t bytes, bool clusters_too);

/* Place of a leaf's entry in the file, for an image of one leaf. */
uint64_t image_entry_offset(const struct image *image, uint64_t cluster);

void image_put(uint8_t *to, uint64_t value, unsigned width_bytes);
uint64_t image_get(const uint8_t *from, unsigned width_bytes);
/* The next number of a small generator, and its state. */
uint64_t image_random(uint64_t *state);

#endif
