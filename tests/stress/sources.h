/* The images that a stress run restores: several cluster sizes, zero pages, holes, clusters that
 * are stored once for two places, and some that are damaged. */
#ifndef LR_STRESS_SOURCES_H
#define LR_STRESS_SOURCES_H

#include "image_builder.h"

#define SOURCE_REGIONS 2
#define SOURCES        6

struct source {
	struct image image;
	bool has_damage;
	uint8_t *damaged[SOURCE_REGIONS]; /* a byte a page; NULL where none is */
	uint64_t duplicates;              /* clusters */
	lr_image *opened;
};
extern struct source sources[SOURCES];
extern unsigned source_count;

/* Without damage the last ones are left out. */
void sources_open(bool with_damage);
void sources_close(void);

/* What a page must hold. */
const uint64_t *source_page(const struct source *source, unsigned region, uint64_t page);
bool source_is_damaged(const struct source *source, unsigned region, uint64_t page);

#endif
