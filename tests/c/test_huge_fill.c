/* Loading pages that are larger than clusters ahead of touches, in real huge pages (hugetlb). */
#include "huge_setting.h"

#include "feed.h"

static void fill(struct setting *set, const struct lr_fill_options *options, int expected)
{
	CHECK_EQ(lr_fill_start(&set->fill, &set->pager, options, NULL), LR_OK);
	CHECK_EQ(lr_fill_wait(&set->fill.state, -1), expected);
}

static uint64_t there(const struct setting *set)
{
	uint64_t count = 0;

	for (uint64_t page = 0; page < set->range->bytes / HUGE; page++)
		count += huge_is_there(set, page);
	return count;
}

static void everything_comes(void)
{
	static const uint32_t cluster_sizes[] = {4096, 65536, 2u << 20};

	for (int i = 0; i < 3; i++) {
		struct setting *set =
			huge_set_up(4096, cluster_sizes[i], 6 * HUGE + 70001, "hrzz8ddhz");

		fill(set, NULL, LR_OK);
		CHECK_EQ(there(set), 7);
		huge_compare(set, 0, set->range->bytes);
		CHECK_EQ(COUNT(set, faults), 0);
		CHECK_EQ(set->target.error_count, 0);
		huge_tear_down(set);
	}
}

/* A program that touches while it fills. */
static void it_may_be_touched_meanwhile(void)
{
	struct setting *set = huge_set_up(4096, 65536, 16 * HUGE, "rdz");
	uint64_t random = 3;

	CHECK_EQ(lr_fill_start(&set->fill, &set->pager, NULL, NULL), LR_OK);
	for (int i = 0; i < 16; i++) {
		uint64_t page = image_random(&random) % 16;

		huge_compare(set, page * HUGE, (page + 1) * HUGE);
	}
	CHECK_EQ(lr_fill_wait(&set->fill.state, -1), LR_OK);
	huge_compare(set, 0, 16 * HUGE);
	CHECK_EQ(COUNT(set, pages_copied), 16);
	huge_tear_down(set);
}

/* A working set names clusters: each brings its page, and no page is gathered twice. */
static void a_page_of_the_working_set_comes_once(void)
{
	static const uint64_t first[] = {70, 71, 64, 95, 3, 4, 31, 0, 1, 2, 5};
	struct lr_fill_options options = {.first = first, .first_count = 11, .first_only = 1};
	struct setting *set = huge_set_up(4096, 65536, 4 * HUGE, "d");

	fill(set, &options, LR_OK);
	CHECK(huge_is_there(set, 0) && huge_is_there(set, 2));
	CHECK_EQ(there(set), 2);
	CHECK_EQ(COUNT(set, clusters_decoded), 64);
	huge_compare(set, 0, HUGE);
	huge_compare(set, 2 * HUGE, 3 * HUGE);
	huge_tear_down(set);
}

/* As populate loads a range: a step is what of it is in the page, also where that is zeros. */
static void a_feed_brings_whole_pages(void)
{
	struct setting *set = calloc(1, sizeof(*set));
	struct lr_problem problem;
	struct lr_feed feed;
	uint64_t run;

	CHECK(set);
	image_make(&set->image, 4096, 65536, 2 * HUGE + 65537, "d");
	huge_serve(set, 0);
	CHECK_EQ(lr_feed_open(&feed, &set->pager), LR_OK);
	CHECK_EQ(lr_feed_load(&feed, set->range, 40, 50, &run, &problem), LR_OK);
	CHECK_EQ(run, 10);
	CHECK_EQ(lr_feed_load(&feed, set->range, 50, 66, &run, &problem), LR_OK);
	CHECK_EQ(run, 1); /* on its way: nothing was begun */
	CHECK_EQ(lr_feed_load(&feed, set->range, 64, 66, &run, &problem), LR_OK);
	CHECK_EQ(run, 2);
	CHECK_EQ(lr_feed_finish(&feed, &problem), LR_OK);
	CHECK(!huge_is_there(set, 0) && huge_is_there(set, 1) && huge_is_there(set, 2));
	CHECK_EQ(COUNT(set, clusters_decoded), 34);
	CHECK_EQ(COUNT(set, faults), 0);
	lr_feed_close(&feed);
	huge_compare(set, 0, set->range->bytes);
	huge_tear_down(set);
}

static void *give_up(void *argument)
{
	struct setting *set = argument;
	uint64_t pages = set->range->bytes / HUGE;

	for (uint64_t page = pages; page-- > 0;) {
		CHECK_CALL(madvise(set->memory + page * HUGE, HUGE, MADV_DONTNEED));
		CHECK_EQ(set->memory[page * HUGE + 777], 0);
		CHECK_EQ(set->memory[(page + 1) * HUGE - 1], 0);
	}
	return NULL;
}

/* A balloon takes pages while they are filled: none comes back. */
static void what_is_given_up_stays_so(void)
{
	struct setting *set = huge_set_up(4096, 65536, 16 * HUGE, "rd");
	pthread_t thread;

	if (!(set->target.uffd.features & LR_UFFD_FEATURE_EVENT_REMOVE))
		SKIP("this kernel's userfaultfd does not tell of memory that is given up");
	if (madvise(set->memory, HUGE, MADV_DONTNEED) < 0)
		SKIP("huge pages cannot be given up here: %s (Linux 5.18)", strerror(errno));
	CHECK_EQ(lr_fill_start(&set->fill, &set->pager, NULL, NULL), LR_OK);
	CHECK_EQ(pthread_create(&thread, NULL, give_up, set), 0);
	pthread_join(thread, NULL);
	CHECK_EQ(lr_fill_wait(&set->fill.state, -1), LR_OK);
	for (uint64_t i = 0; i < 16 * HUGE; i += 4096)
		CHECK_EQ(set->memory[i], 0);
	huge_tear_down(set);
}

/* No page in the pool: the fill stops, and nothing that nobody touched is lost by it. */
static void it_stops_where_the_pool_is_empty(void)
{
	struct setting *set = calloc(1, sizeof(*set));

	CHECK(set);
	CHECK(huge_overcommit(4) >= 0 || geteuid() != 0);
	image_make(&set->image, 4096, 65536, 8 * HUGE, "d");
	huge_serve(set, MAP_NORESERVE);
	CHECK_EQ(lr_fill_start(&set->fill, &set->pager, NULL, NULL), LR_OK);
	if (lr_fill_wait(&set->fill.state, -1) == LR_OK)
		SKIP("this machine has more huge pages than were asked for");
	CHECK_EQ(lr_fill_wait(&set->fill.state, 0), LR_ERR_NOMEM);
	CHECK(there(set) < 8);
	CHECK_EQ(set->target.error_count, 0);
	CHECK(huge_overcommit(HUGE_PAGES_MAX) >= 0);
	huge_compare(set, 0, 8 * HUGE);
	CHECK_EQ(set->target.error_count, 0);
	huge_tear_down(set);
}

/* Put a page in place behind the pager's back, as one that was killed before it noted that. */
static void put(struct setting *set, uint64_t page, uint8_t byte)
{
	uint8_t *data = malloc(HUGE);

	CHECK(data);
	memset(data, byte, HUGE);
	CHECK_EQ(lr_uffd_copy(&set->target.uffd, (uintptr_t)set->memory + page * HUGE, data, HUGE),
		 HUGE);
	free(data);
}

/* What is there already is left as it is, whoever asks and whatever is known of the process. */
static void a_page_that_is_there_stays(void)
{
	struct setting *set = huge_set_up(4096, 65536, 3 * HUGE, "d");
	struct lr_hands hands; /* the pager's own are the pager's, which may be at them */
	struct lr_outcome outcome;
	uint64_t bytes = 0;

	if (!(set->target.uffd.features & LR_UFFD_FEATURE_POISON))
		SKIP("no UFFDIO_POISON before Linux 6.6, which tells what is there");
	CHECK_EQ(lr_hands_open(&hands, &set->target), LR_OK);
	/* Served, so the pager has begun, and looked at whose memory this is. */
	huge_compare(set, 0, HUGE);
	put(set, 1, 5);
	put(set, 2, 6);
	pthread_mutex_lock(&set->pager.loader.busy);
	set->target.is_remote = true; /* and nothing is known of it */
	CHECK_EQ(lr_huge_install(&set->pager.loader, set->range, 2 * HUGE, NULL, &bytes, NULL),
		 LR_ERR_NOMEM);
	CHECK_EQ(lr_huge_fault(&set->pager.loader, &hands, set->range, 2 * HUGE, &outcome), LR_OK);
	CHECK_EQ(outcome.bytes, 0);
	CHECK(lr_pageset_is_settled(&set->target.clusters,
				    lr_target_page(&set->target, set->range, 2 * HUGE)));
	set->target.is_remote = false;
	pthread_mutex_unlock(&set->pager.loader.busy);
	lr_hands_close(&hands);
	fill(set, NULL, LR_OK);
	huge_compare(set, 0, HUGE);
	for (uint64_t i = 0; i < HUGE; i++) {
		CHECK_EQ(set->memory[HUGE + i], 5);
		CHECK_EQ(set->memory[2 * HUGE + i], 6);
	}
	CHECK_EQ(set->target.error_count, 0);
	huge_tear_down(set);
}

static const struct check_case cases[] = {
	CHECK_CASE(everything_comes),
	CHECK_CASE(it_may_be_touched_meanwhile),
	CHECK_CASE(a_page_of_the_working_set_comes_once),
	CHECK_CASE(a_feed_brings_whole_pages),
	CHECK_CASE(what_is_given_up_stays_so),
	CHECK_CASE(it_stops_where_the_pool_is_empty),
	CHECK_CASE(a_page_that_is_there_stays),
};
HUGE_MAIN(cases)
