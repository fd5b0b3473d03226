#include "sources.h"

#include <stdlib.h>
#include <string.h>

#include "board.h"
#include "format.h"

#define PAGE 4096u

struct source sources[SOURCES];
unsigned source_count;

static const uint64_t zeros[PAGE / 8];

/* Let one cluster's entry point at another's bytes, and the region say so too. Both lie in the
 * first leaf, and in region 0. */
static void duplicate(struct source *source, uint64_t from, uint64_t to)
{
	struct image *image = &source->image;
	const struct image_region *region = &image->regions[0];
	uint32_t words = (image->cluster_size / PAGE + 31) / 32;
	uint64_t pages = image->cluster_size / PAGE;

	memcpy(image->file + image_entry_offset(image, to),
	       image->file + image_entry_offset(image, from), LR_ENTRY_HEAD_BYTES + 8 * words);
	memcpy(region->bytes + to * image->cluster_size, region->bytes + from * image->cluster_size,
	       image->cluster_size);
	memcpy(region->states + to * pages, region->states + from * pages, pages);
	source->duplicates++;
}

static void damage(struct source *source, uint64_t cluster)
{
	struct image *image = &source->image;
	uint64_t pages = image->cluster_size / PAGE;
	uint8_t *entry = image->file + image_entry_offset(image, cluster);
	uint64_t payload = image_get(entry + LR_ENTRY_OFFSET, 8);
	uint64_t bytes = image_get(entry + LR_ENTRY_SIZE, 4);

	if (payload == 0 || bytes == 0)
		return;
	image->file[payload + bytes / 2] ^= 0x55;
	for (uint64_t page = cluster * pages; page < (cluster + 1) * pages; page++)
		source->damaged[0][page] = image->regions[0].states[page] == LR_PAGE_DATA;
}

static void make(struct source *source, uint32_t cluster_size, uint64_t pages, const char *pattern,
		 bool has_damage)
{
	struct image *image = &source->image;
	/* Of the first leaf's 256, and without the last, which may be shorter. */
	uint64_t clusters = pages * PAGE / cluster_size;
	uint64_t reach = clusters < 256 ? clusters : 256;

	image_init(image, PAGE, cluster_size);
	/* Ends within a page, and within a cluster. */
	image_add(image, "main", pages * PAGE + PAGE / 2, pattern);
	image_add(image, "more", 100 * PAGE, "dzzzzzzzzzzzr");
	image_build(image);
	source->has_damage = has_damage;
	source->damaged[0] = calloc(pages + 1, 1);
	if (!source->damaged[0])
		fail("out of memory");
	for (uint64_t cluster = 7; cluster + 1 < reach; cluster += 9)
		duplicate(source, cluster - 5, cluster);
	if (has_damage)
		for (uint64_t cluster = 4; cluster + 1 < reach; cluster += 9)
			damage(source, cluster);
	/* The nodes, not the clusters: what is damaged stays so. */
	image_reseal(image->file, image->bytes, false);
	image_publish(image);
	if (lr_image_open(image->path, &source->opened, NULL) < 0)
		fail("cannot open an image of clusters of %u", cluster_size);
}

/* Huge pages that are data but for a few pages, and such that are all zeros. */
static const char *huge_pattern(void)
{
	static char pattern[3 * 512 + 1];

	for (unsigned i = 0; i < 3 * 512; i++)
		pattern[i] = i >= 2 * 512   ? 'z'
			     : i % 32 == 31 ? 'z'
			     : i % 32 == 7  ? 'r'
			     : i % 64 == 0  ? '4'
					    : 'd';
	return pattern;
}

void sources_open(bool with_damage)
{
	unsigned i = 0;

	make(&sources[i++], 65536, 1500, "dddrzd4ddhhrdd8zzdd", false);
	make(&sources[i++], 65536, 4096, huge_pattern(), false);
	make(&sources[i++], 4096, 1000, "dzrh2dd", false);
	make(&sources[i++], 262144, 2000, "ddddddddrrrddddzzzzzzzzzzzdhhhhhhd", false);
	make(&sources[i++], 2u << 20, 3000, "dddzddrdddd8dd", false);
	if (with_damage)
		make(&sources[i++], 16384, 1000, "ddrzdddhddd", true);
	source_count = i;
}

void sources_close(void)
{
	for (unsigned i = 0; i < source_count; i++) {
		lr_image_close(sources[i].opened);
		image_fini(&sources[i].image);
		free(sources[i].damaged[0]);
	}
}

const uint64_t *source_page(const struct source *source, unsigned region, uint64_t page)
{
	const uint8_t *bytes = source->image.regions[region].bytes;

	return bytes ? (const uint64_t *)(const void *)(bytes + page * PAGE) : zeros;
}

bool source_is_damaged(const struct source *source, unsigned region, uint64_t page)
{
	return source->damaged[region] && source->damaged[region][page];
}
