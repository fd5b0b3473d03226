/* Making clusters resident: page sizes of image and host that differ, zero pages, damage. */
#include "check.h"

#include "format.h"
#include "image_builder.h"
#include "loader.h"

struct setting {
	struct image image;
	lr_image *opened;
	struct lr_target target;
	struct lr_loader loader;
	struct lr_range *range;
	uint8_t *memory;
};

/* A target of the first region in memory of this process, without a pager. */
static struct setting *set_up(struct setting *set, uint32_t host_page)
{
	struct lr_problem problem;
	uint64_t bytes;
	uint8_t *memory;

	CHECK_EQ(lr_image_open(set->image.path, &set->opened, NULL), LR_OK);
	CHECK_EQ(lr_target_open(&set->target, set->opened, host_page), LR_OK);
	host_page = set->target.host_page;
	if (lr_uffd_open(&set->target.uffd, LR_PRIVILEGE_AUTO, LR_UFFD_FEATURE_POISON, &problem)
	    < 0)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(lr_loader_open(&set->loader, &set->target), LR_OK);
	set->range = &set->target.ranges[0];
	bytes = (set->range->region.length + host_page - 1) / host_page * host_page;
	/* Larger host pages are aligned to their size. */
	memory = mmap(NULL, bytes + host_page, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(memory != MAP_FAILED);
	memory += (host_page - (uintptr_t)memory % host_page) % host_page;
	set->memory = memory;
	set->range->start = (uint64_t)(uintptr_t)memory;
	set->range->bytes = bytes;
	CHECK_EQ(lr_uffd_register(&set->target.uffd, set->range->start, bytes, NULL), LR_OK);
	CHECK_EQ(lr_target_enter(&set->target, set->range, set->range->start, bytes), LR_OK);
	CHECK(lr_range_change(set->range, LR_RANGE_CHANGING, LR_RANGE_ACTIVE));
	return set;
}

static struct setting *set_up_image(uint32_t page_size, uint32_t cluster_size, uint64_t length,
				    const char *pattern, uint32_t host_page)
{
	struct setting *set = calloc(1, sizeof(*set));

	CHECK(set);
	image_make(&set->image, page_size, cluster_size, length, pattern);
	return set_up(set, host_page);
}

static void tear_down(struct setting *set)
{
	lr_loader_close(&set->loader);
	lr_target_close(&set->target);
	munmap(set->memory, set->range ? set->image.regions[0].length : 0);
	lr_image_close(set->opened);
	image_fini(&set->image);
	free(set);
}

static struct lr_outcome fault(struct setting *set, uint64_t offset)
{
	struct lr_outcome outcome;

	CHECK_EQ(lr_loader_fault(&set->loader, &set->loader.hands, set->range,
				 offset / set->target.host_page * set->target.host_page, &outcome),
		 LR_OK);
	return outcome;
}

/* Load a cluster, and the zero ones behind it, as a feed and the pager would. */
static int load(struct setting *set, uint64_t cluster, uint64_t max_clusters, uint64_t *ret_run)
{
	const struct lr_image_info *info = &set->target.image->info;
	struct lr_decoder *decoder = &set->loader.hands.decoder;
	struct lr_problem problem = {0};
	struct lr_decoded decoded = {
		.info = &decoder->info,
		.expanded = set->loader.hands.expanded,
		.page_size = info->page_size,
		.host_page = set->target.host_page,
	};
	int code = lr_decoder_find(decoder, &set->range->region, cluster, &problem);

	CHECK_EQ(code, LR_OK);
	code = lr_decoder_decode(decoder, &problem);
	*ret_run = 1;
	if (code < 0) {
		CHECK_EQ(lr_loader_fence(&set->loader, set->range, cluster, &decoded, &problem),
			 LR_OK);
		return code;
	}
	decoded.data = decoder->data;
	if (decoded.expanded)
		lr_layout_expand(decoded.info, decoded.data, info->page_size,
				 set->loader.hands.expanded, info->cluster_size);
	if (decoder->info.data_pages == 0)
		*ret_run = decoder->info.run < max_clusters ? decoder->info.run : max_clusters;
	return lr_loader_install(&set->loader, set->range, &decoded, *ret_run, &problem);
}

/* All of the region by faults in a scattered order, each only where nothing is yet. */
static void fault_all_and_compare(struct setting *set)
{
	uint64_t page = set->target.host_page, pages = set->range->bytes / page, random = 7;
	unsigned char present[16];

	CHECK(page / 4096 <= sizeof(present));
	for (uint64_t tries = 0; tries < 4 * pages; tries++) {
		uint64_t offset =
			(tries < 2 * pages ? image_random(&random) : tries) % pages * page;

		CHECK_CALL(mincore(set->memory + offset, page, present));
		if (!(present[0] & 1))
			CHECK(fault(set, offset).bytes >= page);
	}
	CHECK_EQ(set->target.error_count, 0);
	CHECK_MEM(set->memory, set->image.regions[0].bytes, set->image.regions[0].length);
	for (uint64_t i = set->image.regions[0].length; i < set->range->bytes; i++)
		CHECK_EQ(set->memory[i], 0);
}

static void all_page_sizes(void)
{
	static const struct {
		uint32_t page, cluster, host;
	} sizes[] = {
		{4096, 4096, 0},          {4096, 65536, 0},      {4096, 2u << 20, 0},
		{16384, 16384, 0},        {16384, 65536, 0},     {65536, 65536, 0},
		{65536, 262144, 0},       {4096, 65536, 16384},  {4096, 65536, 65536},
		{4096, 262144, 65536},    {16384, 65536, 65536}, {65536, 131072, 16384},
		{16384, 2u << 20, 16384},
	};
	static const uint64_t lengths[] = {1, 4097, 65536, 300001};
	static const char *const patterns[] = {"d", "dz", "hrzzdddhz", "zzzzzzzzzzzzzzzzzzzzr",
					       "zh"};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		for (size_t j = 0; j < sizeof(lengths) / sizeof(lengths[0]); j++)
			for (size_t k = 0; k < sizeof(patterns) / sizeof(patterns[0]); k++) {
				struct setting *set =
					set_up_image(sizes[i].page, sizes[i].cluster, lengths[j],
						     patterns[k], sizes[i].host);

				fault_all_and_compare(set);
				tear_down(set);
			}
}

static void loads_all_page_sizes(void)
{
	static const struct {
		uint32_t page, cluster, host;
	} sizes[] = {
		{4096, 65536, 0}, {65536, 65536, 0}, {4096, 65536, 16384}, {16384, 262144, 65536}};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct setting *set = set_up_image(sizes[i].page, sizes[i].cluster, 1000001,
						   "hrzzdddhz", sizes[i].host);
		uint64_t run;

		for (uint64_t cluster = 0; cluster < set->image.cluster_count; cluster += run)
			CHECK_EQ(load(set, cluster, 100, &run), LR_OK);
		CHECK_MEM(set->memory, set->image.regions[0].bytes, set->image.regions[0].length);
		CHECK_EQ(set->loader.pages_copied + set->loader.pages_zeroed,
			 set->range->bytes / set->target.host_page);
		tear_down(set);
	}
}

/* A zero page brings its run and not its cluster's data; a data page brings the whole cluster. */
static void zero_pages_do_not_decode(void)
{
	struct setting *set = set_up_image(4096, 65536, 65536, "zzdd", 0);
	struct lr_outcome outcome = fault(set, 4096);

	CHECK_EQ(outcome.action, LR_ACTION_ZEROPAGE);
	CHECK_EQ(outcome.bytes, 2 * 4096);
	CHECK_EQ(set->loader.clusters_decoded, 0);
	outcome = fault(set, 2 * 4096);
	CHECK_EQ(outcome.action, LR_ACTION_COPY);
	CHECK_EQ(outcome.bytes, 14 * 4096);
	CHECK_EQ(set->loader.clusters_decoded, 1);
	outcome = fault(set, 2 * 4096);
	CHECK_EQ(outcome.action, LR_ACTION_WAKE);
	CHECK_EQ(outcome.bytes, 0);
	tear_down(set);
}

/* What is damaged is fenced and recorded once; zero pages of its cluster and other clusters go on.
 */
static void fences_a_damaged_cluster(void)
{
	struct setting *set = calloc(1, sizeof(*set));
	uint64_t run;

	CHECK(set);
	image_make(&set->image, 4096, 65536, 3 * 65536 - 100, "rrz");
	set->image.file[image_get(set->image.file + image_entry_offset(&set->image, 1), 8) + 77] ^=
		1;
	image_publish(&set->image);
	set_up(set, 0);
	if (!(set->target.uffd.features & LR_UFFD_FEATURE_POISON))
		SKIP("no UFFDIO_POISON before Linux 6.6");
	/* Pages 16 to 31 are cluster 1: 17 and 20 are zero. */
	CHECK_EQ(fault(set, 17 * 4096).action, LR_ACTION_ZEROPAGE);
	CHECK_EQ(fault(set, 18 * 4096).action, LR_ACTION_FENCE);
	CHECK_EQ(fault(set, 20 * 4096).action, LR_ACTION_ZEROPAGE);
	CHECK_EQ(fault(set, 0).action, LR_ACTION_COPY);
	CHECK_EQ(fault(set, 40 * 4096).action, LR_ACTION_COPY);
	CHECK_EQ(load(set, 1, 1, &run), LR_ERR_CHECKSUM);
	CHECK_EQ(set->target.error_count, 1);
	CHECK_EQ(set->target.errors[0].code, LR_ERR_CHECKSUM);
	CHECK_EQ(set->target.errors[0].cluster, 1);
	CHECK_EQ(set->target.errors[0].offset, 65536);
	CHECK_EQ(set->target.errors[0].length, 65536);
	CHECK_EQ(set->target.errors[0].fenced, 1);
	CHECK_EQ(check_touch(set->memory + 16 * 4096, 0), SIGBUS);
	CHECK_EQ(check_touch(set->memory + 18 * 4096, 1), SIGBUS);
	CHECK_EQ(check_touch(set->memory + 31 * 4096, 0), SIGBUS);
	CHECK_EQ(check_touch(set->memory + 17 * 4096, 1), 0);
	CHECK_EQ(check_touch(set->memory + 20 * 4096, 1), 0);
	CHECK_MEM(set->memory, set->image.regions[0].bytes, 65536);
	tear_down(set);
}

/* Without an index entry nothing of the cluster is known: all of it is fenced. */
static void fences_what_has_no_entry(void)
{
	struct setting *set = calloc(1, sizeof(*set));

	CHECK(set);
	image_make(&set->image, 4096, 65536, 3 * 65536, "rrz");
	set->image.file[image_entry_offset(&set->image, 2) + LR_ENTRY_KIND] = 9;
	image_reseal(set->image.file, set->image.bytes, false);
	image_publish(&set->image);
	set_up(set, 0);
	CHECK_EQ(fault(set, 2 * 65536).action, LR_ACTION_FENCE);
	CHECK_EQ(set->target.errors[0].code, LR_ERR_ENTRY);
	for (int page = 32; page < 48; page++)
		CHECK_NE(check_touch(set->memory + page * 4096, 0), 0);
	CHECK_EQ(fault(set, 0).action, LR_ACTION_COPY);
	tear_down(set);
}

/* More than can be kept: all are counted, the first are kept. */
static void counts_errors_past_those_it_keeps(void)
{
	struct lr_load_error error = {.code = LR_ERR_CHECKSUM};
	struct setting *set = set_up_image(4096, 65536, 65536, "d", 0);

	for (unsigned i = 0; i < LR_ERRORS_KEPT + 10; i++) {
		error.cluster = i;
		lr_target_add_error(&set->target, &error);
	}
	CHECK_EQ(set->target.error_count, LR_ERRORS_KEPT + 10);
	CHECK_EQ(set->target.errors[LR_ERRORS_KEPT - 1].cluster, LR_ERRORS_KEPT - 1);
	tear_down(set);
}

static const struct check_case cases[] = {
	CHECK_CASE(all_page_sizes),           CHECK_CASE(loads_all_page_sizes),
	CHECK_CASE(zero_pages_do_not_decode), CHECK_CASE(fences_a_damaged_cluster),
	CHECK_CASE(fences_what_has_no_entry), CHECK_CASE(counts_errors_past_those_it_keeps),
};
CHECK_MAIN(cases)
