/* The kernel's promises: what it tells of memory that its owner unmaps, replaces, moves and grows
 * (EVENT_UNMAP, EVENT_REMAP), and what is registered afterwards. */
#include "check.h"
#include "kernel_events.h"

/* ---- UNMAP --------------------------------------------------------------------------- */

static void an_unmap_is_told_after_it_happened(void)
{
	struct caller caller;
	set_up();
	start_call(&caller, SYS_munmap, page(2), 3 * KERNEL_PAGE, 0, 0, NULL);
	wait_for_event(&caller);
	unsigned char there;
	CHECK_ERRNO(mincore(page(2), KERNEL_PAGE, &there), ENOMEM);
	CHECK_EQ(kernel_copy(uffd, page(6), data, 1, NULL), EAGAIN);
	read_range(UFFD_EVENT_UNMAP, page(2), 3);
	join_call(&caller);
	CHECK_EQ(kernel_copy(uffd, page(2), data, 1, NULL), ENOENT);
	check_served(page(6));
	CHECK_MEM(memory, data, 2 * KERNEL_PAGE);
}

/* What is not registered is nobody's business. */
static void an_unmap_beside_is_not_told(void)
{
	set_up();
	CHECK_CALL(munmap(page(PAGES), BYTES));
	CHECK_CALL(madvise(kernel_map(1), KERNEL_PAGE, MADV_DONTNEED));
	CHECK_EQ(kernel_poll(uffd, 0), 0);
}

/* Who replaces a part waits too, but the new mapping is there already, and not registered. */
static void a_mapping_over_a_part_is_told_as_unmap(void)
{
	struct caller caller;
	set_up();
	start_call(&caller, SYS_mmap, page(3), 2 * KERNEL_PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, NULL);
	wait_for_event(&caller);
	CHECK(kernel_is_zero(page(3), 2 * KERNEL_PAGE)); /* without a fault message */
	CHECK_EQ(kernel_copy(uffd, page(4), data, 1, NULL), EAGAIN);
	read_range(UFFD_EVENT_UNMAP, page(3), 2);
	CHECK(join_call(&caller) == page(3));
	CHECK_EQ(kernel_copy(uffd, page(4), data, 1, NULL), ENOENT);
	check_served(page(5));
}

static void shrinking_is_told_as_unmap(void)
{
	struct caller caller;
	set_up();
	CHECK_CALL(munmap(page(PAGES), BYTES));
	start_mremap(&caller, 0, PAGES, 3, 0, NULL);
	wait_for_event(&caller);
	read_range(UFFD_EVENT_UNMAP, page(3), PAGES - 3);
	CHECK(join_call(&caller) == memory);
	CHECK_MEM(memory, data, 3 * KERNEL_PAGE);
}

/* Two of one thread come one after the other, so do an unmap and whatever has the place next. */
static void a_place_is_used_again_only_after_the_event(void)
{
	struct caller caller;
	set_up();
	start_call(&caller, SYS_munmap, memory, BYTES, 0, 0, NULL);
	wait_for_event(&caller);
	/* Another thread may have it at once, and register it: but nothing can be put there by this
	 * descriptor until it has read. */
	void *again = mmap(memory, BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(again == memory);
	int other = kernel_open(EVENTS);
	CHECK_EQ(kernel_register(other, memory, PAGES, NULL), 0);
	CHECK_EQ(kernel_copy(uffd, memory, data, 1, NULL), EAGAIN);
	CHECK_EQ(kernel_copy(other, memory, data + KERNEL_PAGE, 1, NULL), 0);
	read_range(UFFD_EVENT_UNMAP, page(0), PAGES);
	join_call(&caller);
	CHECK_EQ(memory[0], data[KERNEL_PAGE]);
}

/* ---- REMAP --------------------------------------------------------------------------- */

/* Targets of moves stay mapped until then: else the mover's own stack may come to lie there.
 *
 * A move is two events, and its caller waits for both: REMAP, then UNMAP of the old place. */
static void read_move(const uint8_t *from, const uint8_t *to, size_t pages)
{
	read_remap(from, to, pages);
	read_range(UFFD_EVENT_UNMAP, from, pages);
}

static void a_move_is_told_and_stays_registered(void)
{
	struct caller caller;
	set_up();
	uint8_t *target = kernel_map(PAGES);
	start_mremap(&caller, 0, PAGES, PAGES, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	wait_for_event(&caller);
	CHECK_MEM(target, data, BYTES / 2); /* it has happened */
	CHECK_EQ(kernel_copy(uffd, target + BYTES / 2, data, 1, NULL), EAGAIN);
	read_move(memory, target, PAGES);
	CHECK(join_call(&caller) == target);
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	check_served(target + BYTES - KERNEL_PAGE);
	CHECK_EQ(kernel_copy(uffd, page(6), data, 1, NULL), ENOENT);
}

static void a_part_may_move(void)
{
	struct caller caller;
	set_up();
	uint8_t *target = kernel_map(PAGES);
	start_mremap(&caller, 3, 2, 2, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	wait_for_event(&caller);
	read_move(page(3), target, 2);
	CHECK(join_call(&caller) == target);
	CHECK_MEM(target, data + 3 * KERNEL_PAGE, KERNEL_PAGE);
	check_served(target + KERNEL_PAGE);
	check_served(page(5));
	CHECK_MEM(memory, data, 3 * KERNEL_PAGE);
}

/* The event has the old length, but what was added asks too. */
static void a_move_that_grows_is_told_with_the_old_length(void)
{
	struct caller caller;
	set_up();
	uint8_t *target = kernel_map(2 * PAGES);
	start_mremap(&caller, 0, PAGES, 2 * PAGES, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	wait_for_event(&caller);
	read_move(memory, target, PAGES);
	CHECK(join_call(&caller) == target);
	check_served(target + BYTES - KERNEL_PAGE);
	check_served(target + BYTES);
}

static void growing_in_place_is_not_told_but_asks(void)
{
	set_up();
	CHECK_CALL(munmap(page(PAGES), BYTES));
	CHECK(mremap(memory, BYTES, BYTES + KERNEL_PAGE, 0) == memory);
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	check_served(page(PAGES));
}

/* The place that is moved onto is unmapped first, in the event queue too. */
static void a_move_onto_a_registered_place(void)
{
	struct caller caller;
	set_up();
	uint8_t *target = kernel_map(PAGES);
	CHECK_EQ(kernel_register(uffd, target, PAGES, NULL), 0);
	CHECK_EQ(kernel_zeropage(uffd, target, 1, NULL), 0);
	start_mremap(&caller, 0, PAGES, PAGES, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	wait_for_event(&caller);
	read_range(UFFD_EVENT_UNMAP, target, PAGES);
	read_move(memory, target, PAGES);
	CHECK(join_call(&caller) == target);
	CHECK_MEM(target, data, BYTES / 2);
	check_served(target + BYTES / 2);
}

static void dontunmap_leaves_the_old_place_registered(void)
{
	struct caller caller;
	set_up();
	uint8_t *target = kernel_map(PAGES);
	start_mremap(&caller, 0, PAGES, PAGES, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
		     target);
	if (kernel_poll(uffd, KERNEL_WAIT_MS) != POLLIN)
		SKIP("MREMAP_DONTUNMAP: %s", strerror(caller.error));
	read_remap(memory, target, PAGES);
	CHECK(join_call(&caller) == target);
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	CHECK_MEM(target, data, BYTES / 2);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(kernel_is_present(page(i)), 0);
	check_served(page(0));
	check_served(target + BYTES / 2);
}

static void closing_lets_a_mover_go(void)
{
	struct caller caller;
	set_up();
	uint8_t *target = kernel_map(PAGES);
	start_mremap(&caller, 0, PAGES, PAGES, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	wait_for_event(&caller);
	close(uffd);
	CHECK(join_call(&caller) == target);
	CHECK_MEM(target, data, BYTES / 2);
}

static const struct check_case cases[] = {
	CHECK_CASE(an_unmap_is_told_after_it_happened),
	CHECK_CASE(an_unmap_beside_is_not_told),
	CHECK_CASE(a_mapping_over_a_part_is_told_as_unmap),
	CHECK_CASE(shrinking_is_told_as_unmap),
	CHECK_CASE(a_place_is_used_again_only_after_the_event),
	CHECK_CASE(a_move_is_told_and_stays_registered),
	CHECK_CASE(a_part_may_move),
	CHECK_CASE(a_move_that_grows_is_told_with_the_old_length),
	CHECK_CASE(growing_in_place_is_not_told_but_asks),
	CHECK_CASE(a_move_onto_a_registered_place),
	CHECK_CASE(dontunmap_leaves_the_old_place_registered),
	CHECK_CASE(closing_lets_a_mover_go),
};
CHECK_MAIN(cases)
