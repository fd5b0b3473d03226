/* The kernel's promises: what UFFDIO_COPY and UFFDIO_ZEROPAGE do, and what they say when they do
 * not. */
#include "check.h"
#include "kernel.h"

#define PAGES 8
#define BYTES (PAGES * KERNEL_PAGE)

struct range {
	int uffd;
	uint8_t *memory;
	uint8_t data[BYTES];
};

static struct range range;

static void set_up(void)
{
	range.uffd = kernel_open(0);
	range.memory = kernel_map(PAGES);
	kernel_fill(range.data, 0, PAGES);
	CHECK_EQ(kernel_register(range.uffd, range.memory, PAGES, NULL), 0);
}

static uint8_t *page(size_t number)
{
	return range.memory + number * KERNEL_PAGE;
}

/* Copy the pages from `first` on from the same place in the data. */
static int copy(size_t first, size_t pages, int64_t *ret_copied)
{
	return kernel_copy(range.uffd, page(first), range.data + first * KERNEL_PAGE, pages,
			   ret_copied);
}

static void copy_installs_pages(void)
{
	int64_t copied;
	set_up();
	CHECK_EQ(copy(0, PAGES, &copied), 0);
	CHECK_EQ(copied, BYTES);
	CHECK_MEM(range.memory, range.data, BYTES);
	CHECK_EQ(kernel_poll(range.uffd, 0), 0);
}

static void copy_touches_no_other_page(void)
{
	set_up();
	CHECK_EQ(copy(3, 2, NULL), 0);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(kernel_is_present(page(i)), i == 3 || i == 4);
}

static void a_present_page_is_eexist(void)
{
	int64_t copied, zeroed;
	set_up();
	CHECK_EQ(copy(4, 1, NULL), 0);
	page(4)[0] = 77;
	CHECK_EQ(copy(4, 1, &copied), EEXIST);
	CHECK_EQ(copied, -EEXIST);
	CHECK_EQ(kernel_zeropage(range.uffd, page(4), 1, &zeroed), EEXIST);
	CHECK_EQ(zeroed, -EEXIST);
	CHECK_EQ(page(4)[0], 77); /* never overwritten */
}

/* A failed COPY wakes nobody: a fault that came between must be woken by hand. */
static void eexist_wakes_nobody(void)
{
	struct kernel_toucher toucher;
	struct uffd_msg message;
	int64_t copied;
	set_up();
	kernel_toucher_start(&toucher, page(0), 0);
	kernel_read(range.uffd, &message, 1);
	struct uffdio_copy quiet = {
		.dst = (uintptr_t)page(0),
		.src = (uintptr_t)range.data,
		.len = KERNEL_PAGE,
		.mode = UFFDIO_COPY_MODE_DONTWAKE,
	};
	CHECK_CALL(ioctl(range.uffd, UFFDIO_COPY, &quiet));
	CHECK_EQ(copy(0, 1, &copied), EEXIST);
	kernel_settle();
	CHECK_EQ(atomic_load(&toucher.done), 0);
	CHECK_EQ(kernel_wake(range.uffd, page(0), 1), 0);
	CHECK_EQ(kernel_toucher_join(&toucher), range.data[0]);
	CHECK_EQ(kernel_poll(range.uffd, 0), 0);
}

static void a_present_page_in_the_middle_is_eagain(void)
{
	int64_t copied;
	set_up();
	CHECK_EQ(kernel_zeropage(range.uffd, page(4), 1, NULL), 0);
	CHECK_EQ(copy(0, PAGES, &copied), EAGAIN);
	CHECK_EQ(copied, 4 * KERNEL_PAGE);
	/* Going on there says why; one page further on all is well. */
	CHECK_EQ(copy(4, 4, &copied), EEXIST);
	CHECK_EQ(copied, -EEXIST);
	CHECK_EQ(copy(5, 3, &copied), 0);
	CHECK_EQ(copied, 3 * KERNEL_PAGE);
	CHECK_MEM(range.memory, range.data, 4 * KERNEL_PAGE);
	CHECK(kernel_is_zero(page(4), KERNEL_PAGE));
	CHECK_MEM(page(5), range.data + 5 * KERNEL_PAGE, 3 * KERNEL_PAGE);
}

/* The pages before the obstacle are woken: only EEXIST at the first page leaves waiters. */
static void eagain_wakes_what_was_installed(void)
{
	struct kernel_toucher toucher;
	struct uffd_msg message;
	set_up();
	CHECK_EQ(kernel_zeropage(range.uffd, page(4), 1, NULL), 0);
	kernel_toucher_start(&toucher, page(1), 0);
	kernel_read(range.uffd, &message, 1);
	CHECK_EQ(copy(0, PAGES, NULL), EAGAIN);
	CHECK_EQ(kernel_toucher_join(&toucher), range.data[KERNEL_PAGE]);
}

static void zeropage_has_the_same_results(void)
{
	int64_t zeroed;
	set_up();
	CHECK_EQ(copy(4, 1, NULL), 0);
	CHECK_EQ(kernel_zeropage(range.uffd, range.memory, PAGES, &zeroed), EAGAIN);
	CHECK_EQ(zeroed, 4 * KERNEL_PAGE);
	CHECK_EQ(kernel_zeropage(range.uffd, page(4), 4, &zeroed), EEXIST);
	CHECK_EQ(kernel_zeropage(range.uffd, page(5), 3, &zeroed), 0);
	CHECK_EQ(zeroed, 3 * KERNEL_PAGE);
	CHECK(kernel_is_zero(range.memory, 4 * KERNEL_PAGE));
}

/* The owner's mprotect, mlock or madvise on a part splits the mapping, and a COPY does not cross
 * from one to another. */
static void a_split_mapping_is_enoent(void)
{
	int64_t copied, zeroed;
	set_up();
	CHECK_CALL(mprotect(page(4), 4 * KERNEL_PAGE, PROT_READ));
	CHECK_EQ(copy(0, PAGES, &copied), ENOENT);
	CHECK(copied == KERNEL_UNTOUCHED || copied == -ENOENT);
	CHECK_EQ(kernel_zeropage(range.uffd, range.memory, PAGES, &zeroed), ENOENT);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(kernel_is_present(page(i)), 0);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(copy(i, 1, NULL), 0);
	CHECK_MEM(range.memory, range.data, BYTES);
}

/* Pages can be put where their owner may not write, or not even read. */
static void protection_does_not_matter(void)
{
	set_up();
	CHECK_CALL(mprotect(range.memory, BYTES, PROT_READ));
	CHECK_EQ(copy(0, 2, NULL), 0);
	CHECK_MEM(range.memory, range.data, 2 * KERNEL_PAGE);
	CHECK_EQ(check_touch(page(0), 1), SIGSEGV);
	CHECK_CALL(mprotect(range.memory, BYTES, PROT_NONE));
	CHECK_EQ(copy(2, 2, NULL), 0);
	CHECK_EQ(check_touch(page(2), 0), SIGSEGV);
	CHECK_EQ(kernel_poll(range.uffd, 0), 0);
	CHECK_CALL(mprotect(range.memory, BYTES, PROT_READ | PROT_WRITE));
	CHECK_MEM(range.memory, range.data, 4 * KERNEL_PAGE);
}

static void odd_lengths_are_refused(void)
{
	set_up();
	CHECK_EQ(kernel_copy(range.uffd, range.memory + 1, range.data, 1, NULL), EINVAL);
	CHECK_EQ(kernel_copy(range.uffd, range.memory, range.data, 0, NULL), EINVAL);
	struct uffdio_copy part = {
		.dst = (uintptr_t)range.memory,
		.src = (uintptr_t)range.data,
		.len = 100,
	};
	CHECK_ERRNO(ioctl(range.uffd, UFFDIO_COPY, &part), EINVAL);
	/* The source need not be aligned. */
	CHECK_EQ(kernel_copy(range.uffd, range.memory, range.data + 1, 1, NULL), 0);
	CHECK_MEM(range.memory, range.data + 1, KERNEL_PAGE);
}

static void a_bad_source_is_efault(void)
{
	int64_t copied;
	set_up();
	uint8_t *none = mmap(NULL, KERNEL_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK_EQ(kernel_copy(range.uffd, range.memory, none, 1, &copied), EFAULT);
	CHECK_EQ(kernel_is_present(range.memory), 0);
}

static void memory_that_is_not_registered_is_enoent(void)
{
	int64_t copied;
	set_up();
	uint8_t *plain = kernel_map(1);
	CHECK_EQ(kernel_copy(range.uffd, plain, range.data, 1, &copied), ENOENT);
	CHECK_EQ(kernel_zeropage(range.uffd, plain, 1, NULL), ENOENT);
}

/* munmap under a waiter: COPY fails, and the waiter hangs until it is woken; then it finds its
 * memory gone. */
static void unmapped_under_a_waiter(void)
{
	set_up();
	CHECK_SIGNAL(SIGSEGV, {
		struct kernel_toucher toucher;
		struct uffd_msg message;
		int64_t copied;
		set_up(); /* the child's own: a registration is not inherited */
		kernel_toucher_start(&toucher, page(0), 0);
		kernel_read(range.uffd, &message, 1);
		CHECK_CALL(munmap(range.memory, BYTES));
		CHECK_EQ(copy(0, 1, &copied), ENOENT);
		kernel_settle();
		CHECK_EQ(atomic_load(&toucher.done), 0);
		CHECK_EQ(kernel_wake(range.uffd, range.memory, 1), 0);
		kernel_toucher_join(&toucher);
	});
}

/* A removed page is asked for again, and gets the old bytes again. */
static void dontneed_makes_a_page_missing_again(void)
{
	struct kernel_server server;
	set_up();
	CHECK_EQ(copy(0, 1, NULL), 0);
	page(0)[0] = 99;
	CHECK_CALL(madvise(range.memory, KERNEL_PAGE, MADV_DONTNEED));
	CHECK_EQ(kernel_is_present(page(0)), 0);
	kernel_server_start(&server, range.uffd, range.memory, PAGES, 0);
	CHECK_EQ(page(0)[0], range.data[0]);
	kernel_server_stop(&server);
	CHECK_EQ(atomic_load(&server.messages), 1);
}

/* With EVENT_REMOVE: until the event is read every COPY is refused, and the remover waits. */
static void *remove_first_page(void *memory)
{
	CHECK_CALL(madvise(memory, KERNEL_PAGE, MADV_DONTNEED));
	return NULL;
}

static void an_unread_remove_holds_copies_up(void)
{
	struct uffd_msg message;
	pthread_t remover;
	int64_t copied;
	range.uffd = kernel_open(UFFD_FEATURE_EVENT_REMOVE);
	range.memory = kernel_map(PAGES);
	kernel_fill(range.data, 0, PAGES);
	CHECK_EQ(kernel_register(range.uffd, range.memory, PAGES, NULL), 0);
	CHECK_EQ(copy(0, 1, NULL), 0);
	CHECK_EQ(pthread_create(&remover, NULL, remove_first_page, range.memory), 0);
	CHECK_EQ(kernel_poll(range.uffd, KERNEL_WAIT_MS), POLLIN);
	CHECK_EQ(copy(4, 1, &copied), EAGAIN);
	/* Older kernels (6.1 among them) leave the field as it was: who resumes by it sets it to 0.
	 */
	CHECK(copied == -EAGAIN || copied == KERNEL_UNTOUCHED);
	CHECK_EQ(kernel_zeropage(range.uffd, page(4), 1, &copied), EAGAIN);
	CHECK(copied == -EAGAIN || copied == KERNEL_UNTOUCHED);
	kernel_read(range.uffd, &message, 1);
	CHECK_EQ(message.event, UFFD_EVENT_REMOVE);
	CHECK_EQ(message.arg.remove.start, (uintptr_t)page(0));
	CHECK_EQ(message.arg.remove.end, (uintptr_t)page(1));
	CHECK_EQ(pthread_join(remover, NULL), 0);
	CHECK_EQ(copy(4, 1, NULL), 0);
}

#define MANY 4096 /* pages: 16 MiB */

/* A page by ZEROPAGE costs no memory until it is written. */
static void zeropage_costs_no_memory(void)
{
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(MANY);
	CHECK_EQ(kernel_register(uffd, memory, MANY, NULL), 0);
	CHECK_EQ(kernel_zeropage(uffd, memory, MANY, NULL), 0);
	CHECK(kernel_is_zero(memory, MANY * KERNEL_PAGE));
	CHECK_EQ(kernel_is_present(memory), 1);
	CHECK_EQ(kernel_smaps(memory, "Rss:"), 0);
	/* A write makes it a page of its own, without a message. */
	for (size_t i = 0; i < MANY / 2; i++)
		memory[i * KERNEL_PAGE] = 1;
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	CHECK_EQ(kernel_smaps(memory, "Rss:"), MANY / 2 * KERNEL_PAGE);
	CHECK_EQ(kernel_smaps(memory, "Anonymous:"), MANY / 2 * KERNEL_PAGE);
}

static void copy_costs_what_it_brings(void)
{
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(MANY), *data = kernel_map(MANY);
	CHECK_EQ(kernel_register(uffd, memory, MANY, NULL), 0);
	memset(data, 0, MANY * KERNEL_PAGE);
	/* Zeros too: the kernel does not look. */
	CHECK_EQ(kernel_copy(uffd, memory, data, MANY, NULL), 0);
	CHECK_EQ(kernel_smaps(memory, "Rss:"), MANY * KERNEL_PAGE);
}

static const struct check_case cases[] = {
	CHECK_CASE(copy_installs_pages),
	CHECK_CASE(copy_touches_no_other_page),
	CHECK_CASE(a_present_page_is_eexist),
	CHECK_CASE(eexist_wakes_nobody),
	CHECK_CASE(a_present_page_in_the_middle_is_eagain),
	CHECK_CASE(eagain_wakes_what_was_installed),
	CHECK_CASE(zeropage_has_the_same_results),
	CHECK_CASE(a_split_mapping_is_enoent),
	CHECK_CASE(protection_does_not_matter),
	CHECK_CASE(odd_lengths_are_refused),
	CHECK_CASE(a_bad_source_is_efault),
	CHECK_CASE(memory_that_is_not_registered_is_enoent),
	CHECK_CASE(unmapped_under_a_waiter),
	CHECK_CASE(dontneed_makes_a_page_missing_again),
	CHECK_CASE(an_unread_remove_holds_copies_up),
	CHECK_CASE(zeropage_costs_no_memory),
	CHECK_CASE(copy_costs_what_it_brings),
};
CHECK_MAIN(cases)
