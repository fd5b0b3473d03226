/*
 * The background fill: what it brings is right whichever way it comes (moved as huge pages, moved
 * as small ones, copied), beside whatever the owner did.
 */
#include <sys/prctl.h>

#include "fill_setting.h"

/* ---- Ways in which pages come ---- */

static void moves_what_is_all_data(void)
{
	make_image("d");
	open_at(0);
	need_move();
	fill(NULL);
	CHECK_EQ(moved(), LENGTH / PAGE);
	check_all();
	CHECK_EQ(faults(), 0);
	tear_down();
}

static void moves_huge_pages(void)
{
	FILE *smaps;
	char line[512];
	unsigned long huge_kb = 0, kb;

	if (prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1)
		SKIP("huge pages are forbidden here");
	make_image("d");
	open_at(0);
	need_move();
	smaps = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
	if (!smaps || !fgets(line, sizeof(line), smaps) || strstr(line, "[never]"))
		SKIP("this machine has no transparent huge pages");
	fclose(smaps);
	fill(NULL);
	smaps = fopen("/proc/self/smaps", "re");
	CHECK(smaps);
	while (fgets(line, sizeof(line), smaps))
		if (sscanf(line, "AnonHugePages: %lu kB", &kb) == 1)
			huge_kb += kb;
	fclose(smaps);
	if (huge_kb == 0)
		SKIP("the machine had no huge page to give");
	CHECK(huge_kb >= HUGE / 1024);
	check_all();
	tear_down();
}

/* Where the region's place is such that clusters lie across the ends of huge pages. */
static void moves_at_odd_places(void)
{
	make_image("ddddr");
	open_at(5 * PAGE);
	need_move();
	fill(NULL);
	CHECK_EQ(moved(), (LENGTH - HUGE) / PAGE);
	check_all();
	tear_down();
}

static void brings_larger_pages_of_another_machine(void)
{
	image_init(&image, 4 * PAGE, CLUSTER);
	image_add(&image, "memory", LENGTH, "ddddddzd");
	image_build(&image);
	image_publish(&image);
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	open_at(PAGE);
	fill(NULL);
	check_all();
	tear_down();
}

static void copies_without_move(void)
{
	make_image("dddddddzr");
	open_at(0);
	session->target.uffd.features &= ~LR_UFFD_FEATURE_MOVE;
	fill(NULL);
	CHECK_EQ(moved(), 0);
	check_all();
	tear_down();
}

static void brings_all_without_huge_pages(void)
{
	CHECK_CALL(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	make_image("ddddddddddddddddddddddddz");
	open_at(0);
	fill(NULL);
	check_all();
	tear_down();
}

/* A few zero pages come along, and must be zeros: the memory was used before for what was copied.
 */
static void moves_zeros_along(void)
{
	struct lr_fill_options options = {.threads = 1};
	/* Zeros elsewhere in each huge page. */
	make_image("ddddddddddddddddddddddddddddddddz");
	open_at(0);
	need_move();
	/* What is touched is copied; the fill goes on behind what was touched last, with 1, 2, 3.
	 */
	CHECK_EQ(memory[HUGE], image.regions[0].bytes[HUGE]);
	CHECK_EQ(memory[0], image.regions[0].bytes[0]);
	fill(&options);
	CHECK_EQ(moved(), LENGTH / 2 / PAGE);
	check_all();
	tear_down();
}

/* A region that stays registered has its zeros too, or system calls on it may fail. */
static void brings_zeros_where_it_stays_registered(void)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	struct lr_problem problem;
	char pattern[LENGTH / PAGE + 1] = {0};
	void *mapped;
	int code;

	memset(pattern, 'z', LENGTH / PAGE);
	memset(pattern, 'd', 600);
	make_image(pattern);
	code = lr_session_open(opened, &options, &session, &problem);
	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(code, LR_OK);
	CHECK_EQ(lr_session_map(session, 0, &mapped, NULL), LR_OK);
	memory = mapped;
	fill(NULL);
	check_all();
	CHECK_EQ(faults(), 0);
	lr_session_close(session);
	lr_image_close(opened);
	image_fini(&image);
}

static void leaves_sparse_data_small(void)
{
	struct lr_session_stats stats;

	make_image("dz");
	open_at(0);
	fill(NULL);
	CHECK_EQ(moved(), 0);
	lr_session_get_stats(session, &stats);
	CHECK_EQ(stats.pages_copied, LENGTH / PAGE / 2);
	check_all();
	CHECK_EQ((uint64_t)lr_memory_get_resident((uintptr_t)memory, LENGTH), LENGTH / 2);
	tear_down();
}

/* ---- What owners did ---- */

static void keeps_what_was_written(void)
{
	make_image("d");
	open_at(0);
	memset(memory + HUGE + 17 * PAGE, 0xee, 100);
	fill(NULL);
	if (session->target.uffd.features & LR_UFFD_FEATURE_MOVE)
		CHECK_EQ(moved(), (LENGTH - HUGE) / PAGE);
	memset(image.regions[0].bytes + HUGE + 17 * PAGE, 0xee, 100);
	check_all();
	tear_down();
}

static void brings_nothing_that_was_given_up(void)
{
	make_image("d");
	open_at(0);
	CHECK_CALL(madvise(memory + 2 * HUGE, PAGE, MADV_DONTNEED));
	CHECK_CALL(madvise(memory + 3 * HUGE - 9 * PAGE, 3 * PAGE, MADV_DONTNEED));
	fill(NULL);
	memset(image.regions[0].bytes + 2 * HUGE, 0, PAGE);
	memset(image.regions[0].bytes + 3 * HUGE - 9 * PAGE, 0, 3 * PAGE);
	check_all();
	tear_down();
}

/* The kernel moves between mappings of one kind only. */
static void copies_into_protected_memory(void)
{
	make_image("d");
	open_at(0);
	CHECK_CALL(mprotect(memory + HUGE, HUGE, PROT_READ));
	CHECK_CALL(mprotect(memory + 2 * HUGE + 4 * PAGE, PAGE, PROT_NONE));
	fill(NULL);
	CHECK_CALL(mprotect(memory, LENGTH, PROT_READ));
	check_all();
	tear_down();
}

static void moves_to_where_memory_lies(void)
{
	uint8_t *elsewhere;

	make_image("d");
	open_at(0);
	elsewhere = mmap(NULL, 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(elsewhere != MAP_FAILED);
	/* One huge page to a place that is no multiple of its size, one away for good. */
	elsewhere += (-(uintptr_t)elsewhere & (HUGE - 1)) == 0 ? PAGE : 0;
	CHECK(mremap(memory + HUGE, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere)
	      == elsewhere);
	CHECK_CALL(munmap(memory + 2 * HUGE, HUGE));
	fill(NULL);
	CHECK_MEM(memory, image.regions[0].bytes, HUGE);
	CHECK_MEM(elsewhere, image.regions[0].bytes + HUGE, HUGE);
	CHECK_MEM(memory + 3 * HUGE, image.regions[0].bytes + 3 * HUGE, HUGE);
	if (session->target.uffd.features & LR_UFFD_FEATURE_EXACT_ADDRESS)
		CHECK(!is_registered(memory) && !is_registered(elsewhere));
	tear_down();
}

static const struct check_case cases[] = {
	CHECK_CASE(moves_what_is_all_data),
	CHECK_CASE(moves_huge_pages),
	CHECK_CASE(moves_at_odd_places),
	CHECK_CASE(brings_larger_pages_of_another_machine),
	CHECK_CASE(copies_without_move),
	CHECK_CASE(brings_all_without_huge_pages),
	CHECK_CASE(moves_zeros_along),
	CHECK_CASE(brings_zeros_where_it_stays_registered),
	CHECK_CASE(leaves_sparse_data_small),
	CHECK_CASE(keeps_what_was_written),
	CHECK_CASE(brings_nothing_that_was_given_up),
	CHECK_CASE(copies_into_protected_memory),
	CHECK_CASE(moves_to_where_memory_lies),
};
CHECK_MAIN(cases)
