/* What is loaded first: in its order, each once, and not what a touch is about to bring. */
#include "check.h"

#include <fcntl.h>

#include "first.h"
#include "image_builder.h"

#define CLUSTERS 200u

struct setting {
	struct image image;
	lr_image *opened;
	struct lr_target target;
	struct lr_pager pager;
	struct lr_first first;
	uint64_t clusters[CLUSTERS];
};

/* A target without userfaultfd or threads. */
static void set_up(struct setting *set)
{
	memset(set, 0, sizeof(*set));
	image_init(&set->image, 4096, 65536);
	image_add(&set->image, "memory", (uint64_t)CLUSTERS * 65536, "d");
	image_build(&set->image);
	/* On a disk, if there is one. */
	set->image.fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	image_publish(&set->image);
	CHECK_EQ(lr_image_open(set->image.path, &set->opened, NULL), LR_OK);
	CHECK_EQ(lr_target_open(&set->target, set->opened, 0), LR_OK);
	set->target.ranges[0].bytes = (uint64_t)CLUSTERS * 65536;
	atomic_store(&set->target.ranges[0].state, LR_RANGE_ACTIVE);
	set->pager.target = &set->target;
	for (uint64_t i = 0; i < CLUSTERS; i++)
		set->clusters[i] = i * 77 % CLUSTERS;
	CHECK_EQ(lr_first_open(&set->first, &set->pager, set->clusters, CLUSTERS), LR_OK);
}

static void tear_down(struct setting *set)
{
	lr_first_close(&set->first);
	lr_target_close(&set->target);
	lr_image_close(set->opened);
	image_fini(&set->image);
}

/* The next one, which then is loaded; CLUSTERS: there is none. */
static uint64_t take(struct setting *set)
{
	struct lr_range *range = NULL;
	uint64_t cluster;

	if (!lr_first_take(&set->first, &range, &cluster))
		return CLUSTERS;
	CHECK(range == &set->target.ranges[0]);
	lr_pageset_put(&set->target.clusters, cluster, LR_STATE_SETTLED);
	return cluster;
}

static void touch(struct setting *set, uint64_t cluster)
{
	lr_pageset_put(&set->target.clusters, cluster, LR_STATE_SETTLED);
	atomic_store(&set->pager.loader.touched, cluster + 1);
}

static void gives_all_in_their_order(void)
{
	struct setting set;

	set_up(&set);
	for (uint64_t i = 0; i < CLUSTERS; i++)
		CHECK_EQ(take(&set), set.clusters[i]);
	CHECK_EQ(take(&set), CLUSTERS);
	CHECK_EQ(take(&set), CLUSTERS);
	tear_down(&set);
}

static void leaves_out_what_is_there(void)
{
	struct setting set;

	set_up(&set);
	lr_pageset_put(&set.target.clusters, set.clusters[0], LR_STATE_SETTLED);
	lr_pageset_settle(&set.target.clusters, set.clusters[1] * 16, 16);
	lr_pageset_settle(&set.target.clusters, set.clusters[2] * 16, 15);
	CHECK_EQ(take(&set), set.clusters[2]);
	CHECK_EQ(take(&set), set.clusters[3]);
	atomic_store(&set.target.ranges[0].state, LR_RANGE_GONE);
	CHECK_EQ(take(&set), CLUSTERS);
	tear_down(&set);
}

/* A program that touches the same in the same order as fast as it is loaded: half of it is left to
 * the program, in pieces, and what the program does not come to is loaded after all. */
static void keeps_out_of_the_way_of_touches(void)
{
	struct setting set;
	uint64_t at = 0, both = 0, taken;
	bool is_taken[CLUSTERS] = {false};

	set_up(&set);
	for (; at < CLUSTERS / 2; at++) {
		if (is_taken[set.clusters[at]])
			continue;
		touch(&set, set.clusters[at]);
		taken = take(&set);
		CHECK(taken < CLUSTERS);
		CHECK(!is_taken[taken]);
		is_taken[taken] = true;
		/* Would the program have come to it just now? */
		both += taken == set.clusters[at + 1];
	}
	CHECK(both <= 2);
	while ((taken = take(&set)) < CLUSTERS) {
		CHECK(!is_taken[taken]);
		is_taken[taken] = true;
	}
	for (uint64_t i = 0; i < CLUSTERS; i++)
		CHECK_EQ(lr_pageset_get(&set.target.clusters, i), LR_STATE_SETTLED);
	tear_down(&set);
}

/* One that touches other clusters, or the last one of all. */
static void is_not_put_off_by_touches_elsewhere(void)
{
	struct setting set;

	set_up(&set);
	touch(&set, set.clusters[100]);
	CHECK_EQ(take(&set), set.clusters[0]);
	touch(&set, set.clusters[CLUSTERS - 1]);
	for (uint64_t i = 1; i < CLUSTERS - 5; i++)
		if (i != 100)
			CHECK_EQ(take(&set), set.clusters[i]);
	for (uint64_t i = CLUSTERS - 5; i < CLUSTERS - 1; i++)
		CHECK_EQ(take(&set), set.clusters[i]);
	CHECK_EQ(take(&set), CLUSTERS);
	tear_down(&set);
}

static void refuses_what_is_not_in_the_image(void)
{
	struct setting set;
	struct lr_first other;
	uint64_t clusters[] = {1, CLUSTERS};

	set_up(&set);
	CHECK_EQ(lr_first_open(&other, &set.pager, clusters, 2), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_first_open(&other, &set.pager, NULL, 2), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_first_open(&other, &set.pager, set.clusters, CLUSTERS + 1), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_first_open(&other, &set.pager, NULL, 0), LR_OK);
	lr_first_read_ahead(&other);
	lr_first_close(&other);
	tear_down(&set);
}

/* Pages of the file that are in memory; asking does not bring any. */
static size_t pages_in_memory(struct setting *set)
{
	size_t bytes = set->image.bytes, pages = (bytes + 4095) / 4096, count = 0;
	unsigned char *present = malloc(pages);
	void *memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, set->image.fd, 0);

	CHECK(present && memory != MAP_FAILED);
	CHECK_EQ(mincore(memory, bytes, present), 0);
	for (size_t i = 0; i < pages; i++)
		count += present[i] & 1;
	munmap(memory, bytes);
	free(present);
	return count;
}

/* Nobody decodes, and yet all payloads come into memory, which are nearly all of the file. */
static void has_payloads_read_ahead(void)
{
	struct setting set;
	size_t all, now = 0;

	set_up(&set);
	all = (set.image.bytes + 4095) / 4096;
	fsync(set.image.fd);
	CHECK_EQ(posix_fadvise(set.image.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	if (pages_in_memory(&set) > all / 2)
		SKIP("this file system keeps files in memory");
	lr_first_read_ahead(&set.first);
	for (int tries = 0; tries < 1000 && now < all * 9 / 10; tries++) {
		usleep(10000);
		now = pages_in_memory(&set);
	}
	CHECK(now >= all * 9 / 10);
	tear_down(&set);
}

static const struct check_case cases[] = {
	CHECK_CASE(gives_all_in_their_order),
	CHECK_CASE(leaves_out_what_is_there),
	CHECK_CASE(keeps_out_of_the_way_of_touches),
	CHECK_CASE(is_not_put_off_by_touches_elsewhere),
	CHECK_CASE(refuses_what_is_not_in_the_image),
	CHECK_CASE(has_payloads_read_ahead),
};

CHECK_MAIN(cases)
