/* Pages that are larger than clusters, in real huge pages (hugetlb): what they get, whole. */
#include "huge_setting.h"

/* A byte of each page, in a scattered order; then all of them. */
static void all_sizes_of_clusters(void)
{
	static const struct {
		uint32_t page, cluster;
	} sizes[] = {
		{4096, 4096}, {4096, 65536}, {65536, 65536}, {16384, 1u << 20}, {4096, 2u << 20}};
	static const char *const patterns[] = {"d", "hrzzdd4hz", "zh"};
	static const uint64_t lengths[] = {1, 4 * HUGE, 3 * HUGE + 300001};

	for (int i = 0; i < 5; i++)
		for (int j = 0; j < 9; j++) {
			struct setting *set = huge_set_up(sizes[i].page, sizes[i].cluster,
							  lengths[j / 3], patterns[j % 3]);
			uint64_t pages = set->range->bytes / HUGE, random = 5;

			for (uint64_t k = 0; k < 2 * pages; k++) {
				uint64_t at = image_random(&random) % set->range->bytes;

				*(volatile uint8_t *)(set->memory + at);
			}
			huge_compare(set, 0, set->range->bytes);
			CHECK_EQ(COUNT(set, pages_copied) + COUNT(set, pages_zeroed), pages);
			CHECK_EQ(set->target.error_count, 0);
			huge_tear_down(set);
		}
}

/* Data in the last cluster of a page only, in the first only, in the midst, and in none. */
static void pages_that_are_mostly_zeros(void)
{
	struct setting *set = calloc(1, sizeof(*set));
	char pattern[4 * 512 + 1];

	CHECK(set);
	memset(pattern, 'z', sizeof(pattern) - 1);
	pattern[sizeof(pattern) - 1] = 0;
	pattern[511] = 'd';
	pattern[512] = 'r';
	pattern[2 * 512 + 200] = 'd';
	image_make(&set->image, 4096, 65536, 4 * HUGE, pattern);
	huge_serve(set, 0);
	for (int round = 0; round < 2; round++) /* whatever a page before left in the buffer */
		for (uint64_t page = 4; page-- > 0;)
			huge_compare(set, page * HUGE, (page + 1) * HUGE);
	CHECK_EQ(COUNT(set, pages_copied), 3);
	CHECK_EQ(COUNT(set, pages_zeroed), 1);
	/* One cluster for each that has data, and nothing for the one that has none. */
	CHECK_EQ(COUNT(set, clusters_decoded), 3);
	CHECK_EQ(COUNT(set, faults), 4);
	huge_tear_down(set);
}

static void a_broken_cluster_fences_its_page(void)
{
	struct setting *set = calloc(1, sizeof(*set));
	struct lr_load_error error;

	CHECK(set);
	image_make(&set->image, 4096, 65536, 2 * HUGE + HUGE / 2, "rrz");
	huge_damage(&set->image, 45);
	huge_damage(&set->image, 79);
	huge_serve(set, 0);
	if (!(set->target.uffd.features & LR_UFFD_FEATURE_POISON))
		SKIP("no UFFDIO_POISON before Linux 6.6");
	CHECK_EQ(check_touch(set->memory + 2 * HUGE - 1, 1), SIGBUS);
	CHECK_EQ(check_touch(set->memory + HUGE, 0), SIGBUS);
	CHECK_EQ(check_touch(set->memory + 3 * HUGE - 1, 0), SIGBUS);
	CHECK_EQ(check_touch(set->memory + 2 * HUGE, 0), SIGBUS);
	huge_compare(set, 0, HUGE);
	lr_loader_quiesce(&set->pager.loader);
	CHECK_EQ(set->target.error_count, 2);
	error = set->target.errors[0];
	CHECK_EQ(error.code, LR_ERR_CHECKSUM);
	CHECK_EQ(error.cluster, 45);
	CHECK_EQ(error.offset, HUGE);
	CHECK_EQ(error.length, HUGE);
	CHECK_EQ(error.fenced, 1);
	error = set->target.errors[1];
	CHECK_EQ(error.cluster, 79);
	CHECK_EQ(error.offset, 2 * HUGE);
	CHECK_EQ(error.length, HUGE / 2);
	huge_tear_down(set);
}

/* The same by a fill: what could be decoded of such a page must not come without the rest. */
static void a_fill_fences_what_is_broken(void)
{
	struct setting *set = calloc(1, sizeof(*set));

	CHECK(set);
	image_make(&set->image, 4096, 65536, 3 * HUGE, "rrz");
	huge_damage(&set->image, 40);
	huge_serve(set, 0);
	if (!(set->target.uffd.features & LR_UFFD_FEATURE_POISON))
		SKIP("no UFFDIO_POISON before Linux 6.6");
	CHECK_EQ(lr_fill_start(&set->fill, &set->pager, NULL, NULL), LR_OK);
	CHECK_EQ(lr_fill_wait(&set->fill.state, -1), LR_OK);
	CHECK(huge_is_there(set, 0) && huge_is_there(set, 2));
	for (uint64_t at = HUGE; at < 2 * HUGE; at += 65536)
		CHECK_EQ(check_touch(set->memory + at, 0), SIGBUS);
	huge_compare(set, 0, HUGE);
	huge_compare(set, 2 * HUGE, 3 * HUGE);
	lr_loader_quiesce(&set->pager.loader);
	CHECK_EQ(set->target.error_count, 1);
	CHECK_EQ(set->target.errors[0].cluster, 40);
	CHECK_EQ(COUNT(set, faults), 0);
	huge_tear_down(set);
}

/* Given up before it came, after it came, and after it was written. */
static void what_is_given_up_is_zeros(void)
{
	struct setting *set = huge_set_up(4096, 65536, 4 * HUGE, "r");

	if (!(set->target.uffd.features & LR_UFFD_FEATURE_EVENT_REMOVE))
		SKIP("this kernel's userfaultfd does not tell of memory that is given up");
	huge_compare(set, HUGE, 2 * HUGE);
	memset(set->memory + 2 * HUGE, 7, HUGE);
	if (madvise(set->memory, 3 * HUGE, MADV_DONTNEED) < 0)
		SKIP("huge pages cannot be given up here: %s (Linux 5.18)", strerror(errno));
	for (uint64_t i = 0; i < 3 * HUGE; i += 512)
		CHECK_EQ(set->memory[i], 0);
	huge_compare(set, 3 * HUGE, 4 * HUGE);
	set->memory[HUGE] = 3;
	CHECK_CALL(madvise(set->memory, 4 * HUGE, MADV_DONTNEED));
	for (uint64_t i = 0; i < 4 * HUGE; i += 512)
		CHECK_EQ(set->memory[i], 0);
	CHECK_EQ(set->target.error_count, 0);
	huge_tear_down(set);
}

static void *touch_all(void *argument)
{
	struct setting *set = argument;
	uint64_t pages = set->range->bytes / HUGE;

	for (uint64_t page = 0; page < pages; page++)
		*(volatile uint8_t *)(set->memory + page * HUGE + 12345);
	return NULL;
}

static void several_threads_touch_the_same(void)
{
	struct setting *set = huge_set_up(4096, 65536, 8 * HUGE, "hrzzdddhz");
	pthread_t threads[6];

	for (int i = 0; i < 6; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, touch_all, set), 0);
	for (int i = 0; i < 6; i++)
		pthread_join(threads[i], NULL);
	huge_compare(set, 0, set->range->bytes);
	CHECK_EQ(COUNT(set, pages_copied), 8);
	huge_tear_down(set);
}

/* A working set has all that a page was made of. */
static void every_cluster_is_recorded(void)
{
	struct setting *set = huge_set_up(4096, 65536, 2 * HUGE + 65536, "d");
	struct lr_touched touched[80];
	uint64_t count;

	*(volatile uint8_t *)(set->memory + HUGE + 99);
	*(volatile uint8_t *)(set->memory + 2 * HUGE);
	lr_loader_quiesce(&set->pager.loader);
	count = lr_record_get(&set->record, 0, touched, 80);
	CHECK_EQ(count, 33);
	for (uint64_t i = 0; i < count; i++)
		CHECK_EQ(touched[i].cluster, 32 + i);
	huge_tear_down(set);
}

/* Hugetlb's pages come from a pool, and that may have no more: SIGBUS, as without a userfaultfd,
 * and not a wait for good. */
static void a_pool_that_is_empty_is_an_error(void)
{
	struct setting *set = calloc(1, sizeof(*set));
	uint64_t page = 0;
	int raised = 0;

	CHECK(set);
	image_make(&set->image, 4096, 65536, (HUGE_PAGES_MAX + 8) * HUGE, "zzzd");
	huge_serve(set, MAP_NORESERVE);
	if (!(set->target.uffd.features & LR_UFFD_FEATURE_POISON))
		SKIP("no UFFDIO_POISON before Linux 6.6");
	while (!raised && page < HUGE_PAGES_MAX + 8)
		raised = check_touch(set->memory + page++ * HUGE, 0);
	if (!raised)
		SKIP("this machine has more huge pages than were asked for");
	CHECK_EQ(raised, SIGBUS);
	lr_loader_quiesce(&set->pager.loader);
	CHECK_EQ(set->target.error_count, 1);
	CHECK_EQ(set->target.errors[0].code, LR_ERR_NOMEM);
	CHECK_EQ(set->target.errors[0].offset, (page - 1) * HUGE);
	huge_compare(set, 0, (page - 1) * HUGE);
	huge_tear_down(set);
}

static const struct check_case cases[] = {
	CHECK_CASE(all_sizes_of_clusters),
	CHECK_CASE(pages_that_are_mostly_zeros),
	CHECK_CASE(a_broken_cluster_fences_its_page),
	CHECK_CASE(a_fill_fences_what_is_broken),
	CHECK_CASE(what_is_given_up_is_zeros),
	CHECK_CASE(several_threads_touch_the_same),
	CHECK_CASE(every_cluster_is_recorded),
	CHECK_CASE(a_pool_that_is_empty_is_an_error),
};
HUGE_MAIN(cases)
