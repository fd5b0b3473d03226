/* Installing pages over runs of which some are there, split, unmapped or somebody else's. */
#include "check.h"

#include <sched.h>

#include "install.h"

#define PAGE  4096u
#define PAGES 16u

struct setting {
	struct lr_target target;
	uint64_t start;
	uint8_t *memory;
	uint8_t source[PAGES * PAGE];
};

static struct setting *set_up(void)
{
	struct setting *set = calloc(1, sizeof(*set));
	struct lr_problem problem;

	CHECK(set);
	if (sysconf(_SC_PAGESIZE) != PAGE)
		SKIP("pages of %ld bytes: this test knows 4096", sysconf(_SC_PAGESIZE));
	set->target.host_page = PAGE;
	if (lr_uffd_open(&set->target.uffd, LR_PRIVILEGE_AUTO, LR_UFFD_FEATURE_POISON, &problem)
	    < 0)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	set->memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0);
	CHECK(set->memory != MAP_FAILED);
	set->start = (uint64_t)(uintptr_t)set->memory;
	CHECK_EQ(lr_uffd_register(&set->target.uffd, set->start, PAGES * PAGE, NULL), LR_OK);
	for (unsigned i = 0; i < sizeof(set->source); i++)
		set->source[i] = (uint8_t)(1 + i / PAGE);
	return set;
}

static void tear_down(struct setting *set)
{
	lr_uffd_close(&set->target.uffd);
	munmap(set->memory, PAGES * PAGE);
	free(set);
}

static int install(struct setting *set, enum lr_install_kind kind, unsigned first, unsigned count,
		   uint64_t *pages)
{
	struct lr_installed installed;
	int code = lr_install(&set->target, kind, set->start + first * PAGE,
			      kind == LR_INSTALL_COPY ? set->source + first * PAGE : NULL,
			      count * PAGE, &installed);

	CHECK_EQ(installed.bytes, code == LR_OK ? count * PAGE : installed.bytes);
	*pages = installed.pages;
	return code;
}

static int fence(struct setting *set, unsigned first, unsigned count)
{
	struct lr_piece piece = {.start = set->start, .end = set->start + PAGES * PAGE};

	return lr_install_fence(&set->target, &piece, set->start + first * PAGE, count * PAGE);
}

/* Pages 3, 4, 9 and 15 are there with bytes of their own: they stay, all others come. */
static void leaves_what_is_there(void)
{
	static const unsigned there[] = {3, 4, 9, 15};
	struct setting *set = set_up();
	uint64_t pages;

	for (unsigned i = 0; i < 4; i++) {
		CHECK_EQ(install(set, LR_INSTALL_ZEROPAGE, there[i], 1, &pages), LR_OK);
		set->memory[there[i] * PAGE] = 200;
	}
	CHECK_EQ(install(set, LR_INSTALL_COPY, 0, PAGES, &pages), LR_OK);
	CHECK_EQ(pages, PAGES - 4);
	for (unsigned i = 0; i < PAGES; i++) {
		int own = i == 3 || i == 4 || i == 9 || i == 15;

		CHECK_EQ(set->memory[i * PAGE], own ? 200 : 1 + i);
		CHECK_EQ(set->memory[i * PAGE + PAGE - 1], own ? 0 : 1 + i);
	}
	CHECK_EQ(install(set, LR_INSTALL_COPY, 0, PAGES, &pages), LR_OK);
	CHECK_EQ(pages, 0);
	tear_down(set);
}

/* A mapping split in two places by another protection: each part is filled. */
static void crosses_splits(void)
{
	struct setting *set = set_up();
	uint64_t pages;

	CHECK_CALL(mprotect(set->memory + 5 * PAGE, PAGE, PROT_READ));
	CHECK_CALL(mprotect(set->memory + 11 * PAGE, 2 * PAGE, PROT_READ));
	CHECK_EQ(install(set, LR_INSTALL_COPY, 0, 8, &pages), LR_OK);
	CHECK_EQ(pages, 8);
	CHECK_EQ(install(set, LR_INSTALL_ZEROPAGE, 8, 8, &pages), LR_OK);
	CHECK_EQ(pages, 8);
	for (unsigned i = 0; i < PAGES; i++)
		CHECK_EQ(set->memory[i * PAGE], i < 8 ? 1 + i : 0);
	tear_down(set);
}

/* Pages that were unmapped, or mapped anew by somebody else, are passed over and not written. */
static void passes_over_what_is_gone(void)
{
	struct setting *set = set_up();
	uint64_t pages;

	CHECK_CALL(munmap(set->memory + 2 * PAGE, 2 * PAGE));
	CHECK(mmap(set->memory + 3 * PAGE, PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0)
	      == set->memory + 3 * PAGE);
	CHECK_EQ(install(set, LR_INSTALL_COPY, 0, PAGES, &pages), LR_OK);
	CHECK_EQ(pages, PAGES - 2);
	CHECK_EQ(check_touch(set->memory + 2 * PAGE, 0), SIGSEGV);
	CHECK_EQ(set->memory[3 * PAGE], 0);
	CHECK_EQ(set->memory[4 * PAGE], 5);
	CHECK_EQ(set->memory[15 * PAGE], 16);
	tear_down(set);
}

struct waiter {
	pthread_t thread;
	volatile uint8_t *at;
	int value;
};

static void *touch(void *argument)
{
	struct waiter *waiter = argument;

	waiter->value = *waiter->at;
	return NULL;
}

/* Who waits for a page that came otherwise is woken by the EEXIST. */
static void wakes_who_waits_for_a_page_that_is_there(void)
{
	struct setting *set = set_up();
	struct waiter waiter = {.at = set->memory + 7 * PAGE};
	struct uffd_copy_without_wake {
		uint64_t dst, src, len, mode;
		int64_t copy;
	} request = {(uintptr_t)waiter.at, (uintptr_t)set->source, PAGE, 1, 0};
	struct lr_uffd_message fault;
	uint64_t pages;

	CHECK_EQ(pthread_create(&waiter.thread, NULL, touch, &waiter), 0);
	while (lr_uffd_read(&set->target.uffd, &fault, 1) == 0)
		sched_yield();
	/* UFFDIO_COPY that wakes nobody. */
	CHECK_CALL(syscall(SYS_ioctl, set->target.uffd.fd, 0xc028aa03ul, &request));
	CHECK_EQ(install(set, LR_INSTALL_COPY, 0, PAGES, &pages), LR_OK);
	CHECK_EQ(pages, PAGES - 1);
	CHECK_EQ(pthread_join(waiter.thread, NULL), 0);
	CHECK_EQ(waiter.value, 1);
	tear_down(set);
}

static void fences_what_is_missing_only(void)
{
	struct setting *set = set_up();
	uint64_t pages;

	CHECK_EQ(install(set, LR_INSTALL_COPY, 4, 2, &pages), LR_OK);
	int kind = fence(set, 0, PAGES);

	if (!(set->target.uffd.features & LR_UFFD_FEATURE_POISON))
		SKIP("no UFFDIO_POISON before Linux 6.6");
	CHECK_EQ(kind, 1);
	CHECK_EQ(set->memory[4 * PAGE], 5);
	CHECK_EQ(set->memory[5 * PAGE], 6);
	CHECK_EQ(check_touch(set->memory + 3 * PAGE, 0), SIGBUS);
	CHECK_EQ(check_touch(set->memory + 6 * PAGE, 1), SIGBUS);
	/* It outlives the userfaultfd. */
	lr_uffd_close(&set->target.uffd);
	CHECK_EQ(check_touch(set->memory + 15 * PAGE, 0), SIGBUS);
	tear_down(set);
}

/* Where the kernel has no POISON: no access, on the missing run only, and its waiters are woken. */
static void fences_without_poison(void)
{
	struct setting *set = set_up();
	uint64_t pages;

	set->target.uffd.features &= ~LR_UFFD_FEATURE_POISON;
	CHECK_EQ(install(set, LR_INSTALL_COPY, 0, 4, &pages), LR_OK);
	CHECK_EQ(fence(set, 4, 4), 2);
	CHECK_EQ(check_touch(set->memory + 3 * PAGE, 0), 0);
	CHECK_EQ(check_touch(set->memory + 4 * PAGE, 0), SIGSEGV);
	CHECK_EQ(check_touch(set->memory + 7 * PAGE, 1), SIGSEGV);
	tear_down(set);
}

static const struct check_case cases[] = {
	CHECK_CASE(leaves_what_is_there),
	CHECK_CASE(crosses_splits),
	CHECK_CASE(passes_over_what_is_gone),
	CHECK_CASE(wakes_who_waits_for_a_page_that_is_there),
	CHECK_CASE(fences_what_is_missing_only),
	CHECK_CASE(fences_without_poison),
};
CHECK_MAIN(cases)
