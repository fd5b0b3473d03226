/*
 * Memory of huge pages that is served by a pager of its own, for tests of pages that are larger
 * than clusters.
 */
#ifndef LR_HUGE_SETTING_H
#define LR_HUGE_SETTING_H

#include "check.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "fill.h"
#include "huge.h"
#include "huge_pool.h"
#include "image_builder.h"
#include "jobs.h"

struct setting {
	struct image image;
	lr_image *opened;
	struct lr_target target;
	struct lr_pager pager;
	struct lr_fill fill;
	struct lr_record record;
	struct lr_range *range;
	uint8_t *memory;
};

/* Memory of this many bytes in huge pages, or skip. */
static inline uint8_t *huge_map(uint64_t bytes, int flags)
{
	void *memory = mmap(
		NULL, bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT) | flags, -1, 0);

	if (memory == MAP_FAILED)
		SKIP("no huge pages to be had here (%s): " HUGE_OVERCOMMIT " is %ld",
		     strerror(errno), huge_overcommit(-1));
	return memory;
}

static inline int huge_register(int uffd, const void *start, uint64_t bytes)
{
	struct uffdio_register request = {
		.range = {.start = (uintptr_t)start, .len = bytes},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &request) < 0 ? errno : 0;
}

/* The first region of the image, in huge pages of this process, with a pager. */
static inline void huge_serve(struct setting *set, int map_flags)
{
	struct lr_problem problem = {0};
	uint64_t bytes;

	CHECK_EQ(lr_image_open(set->image.path, &set->opened, NULL), LR_OK);
	CHECK_EQ(lr_target_open(&set->target, set->opened, HUGE), LR_OK);
	if (lr_uffd_open(&set->target.uffd, LR_PRIVILEGE_AUTO,
			 LR_UFFD_FEATURE_POISON | LR_UFFD_FEATURE_EVENT_REMOVE
				 | LR_UFFD_FEATURE_EVENT_UNMAP | LR_UFFD_FEATURE_EVENT_REMAP
				 | LR_UFFD_FEATURE_MOVE,
			 &problem)
	    < 0)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(lr_record_open(&set->record, set->opened->info.cluster_count), LR_OK);
	set->target.record = &set->record;
	set->range = &set->target.ranges[0];
	bytes = (set->range->region.length + HUGE - 1) / HUGE * HUGE;
	set->memory = huge_map(bytes, map_flags);
	CHECK_EQ(lr_target_enter(&set->target, set->range, (uintptr_t)set->memory, bytes), LR_OK);
	CHECK_EQ(huge_register(set->target.uffd.fd, set->memory, bytes), 0);
	CHECK(lr_range_change(set->range, LR_RANGE_CHANGING, LR_RANGE_ACTIVE));
	CHECK_EQ(lr_pager_start(&set->pager, &set->target, 64, &problem), LR_OK);
}

static inline struct setting *huge_set_up(uint32_t page_size, uint32_t cluster_size,
					  uint64_t length, const char *pattern)
{
	struct setting *set = calloc(1, sizeof(*set));

	CHECK(set);
	image_make(&set->image, page_size, cluster_size, length, pattern);
	huge_serve(set, 0);
	return set;
}

static inline void huge_tear_down(struct setting *set)
{
	lr_fill_stop(&set->fill);
	/* Who unmaps waits until the pager has read of it. */
	munmap(set->memory, set->range->bytes);
	lr_pager_stop(&set->pager);
	lr_record_close(&set->record);
	lr_target_close(&set->target);
	lr_image_close(set->opened);
	image_fini(&set->image);
	free(set);
}

/* One of the pager's counters: COUNT(set, faults). */
static inline uint64_t huge_count(struct setting *set, const uint64_t *counter)
{
	uint64_t value;

	pthread_mutex_lock(&set->pager.loader.busy);
	value = *counter;
	pthread_mutex_unlock(&set->pager.loader.busy);
	return value;
}
#define COUNT(set, counter) huge_count(set, &(set)->pager.loader.counter)

/* What the image has, and zeros behind it. */
static inline void huge_compare(const struct setting *set, uint64_t begin, uint64_t end)
{
	uint64_t length = set->image.regions[0].length;
	uint64_t stop = end < length ? end : length;

	if (begin < stop && set->image.regions[0].bytes)
		CHECK_MEM(set->memory + begin, set->image.regions[0].bytes + begin, stop - begin);
	for (uint64_t i = begin < stop ? stop : begin; i < end; i++)
		CHECK_EQ(set->memory[i], 0);
}

static inline bool huge_is_there(const struct setting *set, uint64_t page)
{
	unsigned char present[HUGE / 4096];

	CHECK_CALL(mincore(set->memory + page * HUGE, HUGE, present));
	return present[0] & 1;
}

/* Damage a cluster's payload in an image that has been published. */
static inline void huge_damage(struct image *image, uint64_t cluster)
{
	image->file[image_get(image->file + image_entry_offset(image, cluster), 8) + 7] ^= 1;
	image_publish(image);
}

#endif
