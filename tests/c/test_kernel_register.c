/* The kernel's promises: registering ranges, and what happens when that ends. */
#include "check.h"
#include "kernel.h"

static void the_range_allows_what_is_used(void)
{
	uint64_t ioctls = 0;
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(1);
	CHECK_EQ(kernel_register(uffd, memory, 1, &ioctls), 0);
	CHECK(ioctls & (uint64_t)1 << _UFFDIO_WAKE);
	CHECK(ioctls & (uint64_t)1 << _UFFDIO_COPY);
	CHECK(ioctls & (uint64_t)1 << _UFFDIO_ZEROPAGE);
	/* The mask has POISON just where the feature bit says so. */
	int has_poison = (kernel_features() & KERNEL_FEATURE_POISON) != 0;
	CHECK_EQ((ioctls >> KERNEL_IOCTL_POISON) & 1, has_poison);
}

/* The classic demonstration asks for all of UFFD_API_RANGE_IOCTLS: that is what must not be done.
 */
static void the_range_does_not_allow_all_there_is(void)
{
	uint64_t ioctls = 0;
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(1);
	CHECK_EQ(kernel_register(uffd, memory, 1, &ioctls), 0);
	CHECK_EQ(ioctls & (uint64_t)1 << _UFFDIO_CONTINUE, 0); /* for minor faults only */
}

static void odd_ranges_are_refused(void)
{
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(4);
	CHECK_EQ(kernel_register(uffd, memory + 1, 1, NULL), EINVAL);
	CHECK_EQ(kernel_register(uffd, memory, 0, NULL), EINVAL);
	struct uffdio_register half = {
		.range = {.start = (uintptr_t)memory, .len = KERNEL_PAGE / 2},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	CHECK_ERRNO(ioctl(uffd, UFFDIO_REGISTER, &half), EINVAL);
	struct uffdio_register no_mode = {
		.range = {.start = (uintptr_t)memory, .len = KERNEL_PAGE},
	};
	CHECK_ERRNO(ioctl(uffd, UFFDIO_REGISTER, &no_mode), EINVAL);
	CHECK_CALL(munmap(memory + 2 * KERNEL_PAGE, 2 * KERNEL_PAGE));
	CHECK_EQ(kernel_register(uffd, memory + 2 * KERNEL_PAGE, 2, NULL), EINVAL);
}

/* A hole in the middle is not noticed: only its first page must be mapped. */
static void a_range_with_a_hole_is_taken(void)
{
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(4);
	CHECK_CALL(munmap(memory + KERNEL_PAGE, KERNEL_PAGE));
	CHECK_EQ(kernel_register(uffd, memory, 4, NULL), 0);
}

static void a_mapped_file_is_refused(void)
{
	int uffd = kernel_open(0), fd = (int)CHECK_CALL(open("/proc/self/exe", O_RDONLY));
	void *memory = mmap(NULL, KERNEL_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(memory != MAP_FAILED);
	CHECK_EQ(kernel_register(uffd, memory, 1, NULL), EINVAL);
}

static void a_range_that_another_holds_is_ebusy(void)
{
	int first = kernel_open(0), second = kernel_open(0);
	uint8_t *memory = kernel_map(4);
	CHECK_EQ(kernel_register(first, memory, 4, NULL), 0);
	CHECK_EQ(kernel_register(second, memory, 4, NULL), EBUSY);
	CHECK_EQ(kernel_register(second, memory + KERNEL_PAGE, 1, NULL), EBUSY);
	/* The same one may register it again. */
	CHECK_EQ(kernel_register(first, memory, 4, NULL), 0);
	/* And when it lets go the other may have it. */
	CHECK_EQ(kernel_unregister(first, memory, 4), 0);
	CHECK_EQ(kernel_register(second, memory, 4, NULL), 0);
}

/* Partly held: none of it is registered. */
static void ebusy_leaves_the_rest_unregistered(void)
{
	int first = kernel_open(0), second = kernel_open(0);
	uint8_t *memory = kernel_map(4);
	CHECK_EQ(kernel_register(first, memory + 2 * KERNEL_PAGE, 2, NULL), 0);
	CHECK_EQ(kernel_register(second, memory, 4, NULL), EBUSY);
	CHECK_EQ(memory[0], 0);
	CHECK_EQ(kernel_poll(second, 0), 0);
}

#define LIBRARY_PAGES 64

struct reader {
	const uint8_t *base;
	size_t first_page;
	pthread_t thread;
};

static void *read_all(void *argument)
{
	struct reader *reader = argument;
	kernel_check_pages(reader->base, reader->first_page, LIBRARY_PAGES);
	return NULL;
}

/* Two libraries in one process that do not know of each other. */
static void two_libraries_serve_their_own_ranges(void)
{
	struct kernel_server servers[2];
	struct reader readers[4];
	uint8_t *memory[2];
	for (size_t i = 0; i < 2; i++) {
		int uffd = kernel_open(0);
		memory[i] = kernel_map(LIBRARY_PAGES);
		CHECK_EQ(kernel_register(uffd, memory[i], LIBRARY_PAGES, NULL), 0);
		kernel_server_start(&servers[i], uffd, memory[i], LIBRARY_PAGES, i * 100);
	}
	for (size_t i = 0; i < 4; i++) {
		readers[i] = (struct reader){memory[i % 2], i % 2 * 100, 0};
		CHECK_EQ(pthread_create(&readers[i].thread, NULL, read_all, &readers[i]), 0);
	}
	for (size_t i = 0; i < 4; i++)
		CHECK_EQ(pthread_join(readers[i].thread, NULL), 0);
	for (size_t i = 0; i < 2; i++) {
		kernel_server_stop(&servers[i]);
		CHECK(atomic_load(&servers[i].messages) >= LIBRARY_PAGES);
	}
}

/* One library cannot fill what another holds? It can: the kernel checks only that *some*
 * userfaultfd is there. */
static void a_copy_through_the_wrong_descriptor_lands(void)
{
	uint8_t data[KERNEL_PAGE];
	int owner = kernel_open(0), other = kernel_open(0);
	uint8_t *memory = kernel_map(2);
	CHECK_EQ(kernel_register(owner, memory, 2, NULL), 0);
	kernel_fill(data, 3, 1);
	CHECK_EQ(kernel_copy(other, memory, data, 1, NULL), 0);
	CHECK_MEM(memory, data, KERNEL_PAGE);
	CHECK_EQ(kernel_zeropage(other, memory + KERNEL_PAGE, 1, NULL), 0);
}

/* ---- Hazards: what must never happen to a session ------------------------------------ */

static void unregister_turns_missing_pages_to_zeros(void)
{
	struct kernel_toucher toucher;
	struct uffd_msg message;
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(2);
	CHECK_EQ(kernel_register(uffd, memory, 2, NULL), 0);
	kernel_toucher_start(&toucher, memory, 0);
	kernel_read(uffd, &message, 1);
	CHECK_EQ(kernel_unregister(uffd, memory, 2), 0);
	CHECK_EQ(kernel_toucher_join(&toucher), 0); /* the waiter, too */
	CHECK_EQ(memory[KERNEL_PAGE], 0);
}

static void close_turns_missing_pages_to_zeros(void)
{
	struct kernel_toucher toucher;
	struct uffd_msg message;
	int uffd = kernel_open(0), copy;
	uint8_t *memory = kernel_map(2);
	CHECK_EQ(kernel_register(uffd, memory, 2, NULL), 0);
	kernel_toucher_start(&toucher, memory, 0);
	kernel_read(uffd, &message, 1);
	/* Not while a copy of the descriptor is open. */
	copy = (int)CHECK_CALL(dup(uffd));
	close(uffd);
	kernel_settle();
	CHECK_EQ(atomic_load(&toucher.done), 0);
	close(copy);
	CHECK_EQ(kernel_toucher_join(&toucher), 0);
	CHECK_EQ(memory[KERNEL_PAGE], 0);
}

/* Loaded pages stay what they are. */
static void unregister_keeps_loaded_pages(void)
{
	uint8_t data[2 * KERNEL_PAGE];
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(2);
	CHECK_EQ(kernel_register(uffd, memory, 2, NULL), 0);
	kernel_fill(data, 0, 2);
	CHECK_EQ(kernel_copy(uffd, memory, data, 2, NULL), 0);
	CHECK_EQ(kernel_unregister(uffd, memory, 2), 0);
	close(uffd);
	CHECK_MEM(memory, data, sizeof(data));
}

/* Part of a range: the rest goes on. What the fill does with long runs of zeros. */
static void part_of_a_range_may_be_unregistered(void)
{
	struct kernel_server server;
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(6);
	CHECK_EQ(kernel_register(uffd, memory, 6, NULL), 0);
	CHECK_EQ(kernel_unregister(uffd, memory + 2 * KERNEL_PAGE, 2), 0);
	kernel_server_start(&server, uffd, memory, 6, 0);
	CHECK(kernel_is_zero(memory + 2 * KERNEL_PAGE, 2 * KERNEL_PAGE));
	kernel_check_pages(memory, 0, 2);
	kernel_check_pages(memory + 4 * KERNEL_PAGE, 4, 2);
	kernel_server_stop(&server);
	/* A COPY there finds no registration. */
	int64_t copied;
	uint8_t data[KERNEL_PAGE] = {1};
	CHECK_CALL(madvise(memory + 2 * KERNEL_PAGE, KERNEL_PAGE, MADV_DONTNEED));
	CHECK_EQ(kernel_copy(uffd, memory + 2 * KERNEL_PAGE, data, 1, &copied), ENOENT);
}

/* Pages that are there before REGISTER are never asked for. */
static void pages_present_before_stay(void)
{
	uint8_t data[KERNEL_PAGE] = {1};
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(2);
	CHECK_EQ(*(volatile uint8_t *)memory, 0); /* a read is enough: the zero page is a page */
	CHECK_EQ(kernel_is_present(memory), 1);
	CHECK_EQ(kernel_register(uffd, memory, 2, NULL), 0);
	CHECK_EQ(kernel_copy(uffd, memory, data, 1, NULL), EEXIST);
	CHECK_EQ(memory[0], 0);
	/* Emptied after registering, they are. */
	CHECK_CALL(madvise(memory, KERNEL_PAGE, MADV_DONTNEED));
	CHECK_EQ(kernel_is_present(memory), 0);
	CHECK_EQ(kernel_copy(uffd, memory, data, 1, NULL), 0);
	CHECK_EQ(memory[0], 1);
}

static void mlockall_makes_pages_present_before(void)
{
	uint8_t data[KERNEL_PAGE] = {1};
	int uffd = kernel_open(0);
	if (CHECK_SANITIZER_FACTOR != 1)
		SKIP("sanitizers make mlockall do nothing");
	if (mlockall(MCL_FUTURE) == -1)
		SKIP("mlockall: %s", strerror(errno));
	uint8_t *memory = kernel_map(2);
	CHECK_EQ(kernel_register(uffd, memory, 2, NULL), 0);
	CHECK_EQ(kernel_is_present(memory), 1);
	CHECK_EQ(kernel_copy(uffd, memory, data, 1, NULL), EEXIST);
	CHECK_EQ(memory[0], 0);
	/* Locked memory cannot be emptied but by unlocking it. */
	CHECK_ERRNO(madvise(memory, 2 * KERNEL_PAGE, MADV_DONTNEED), EINVAL);
	CHECK_CALL(munlock(memory, 2 * KERNEL_PAGE));
	CHECK_CALL(madvise(memory, 2 * KERNEL_PAGE, MADV_DONTNEED));
	CHECK_EQ(kernel_copy(uffd, memory, data, 1, NULL), 0);
}

/* MAP_NORESERVE mappings of a terabyte may be registered: nothing is allocated for them. */
static void a_terabyte_can_be_registered(void)
{
	size_t bytes = (size_t)1 << 40;
	int uffd = kernel_open(0);
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		SKIP("a mapping of 1 TiB: %s", strerror(errno));
	uint8_t data[KERNEL_PAGE] = {9};
	uint8_t *last = (uint8_t *)memory + bytes - KERNEL_PAGE;
	CHECK_EQ(kernel_register(uffd, memory, bytes / KERNEL_PAGE, NULL), 0);
	CHECK_EQ(kernel_copy(uffd, last, data, 1, NULL), 0);
	CHECK_EQ(last[0], 9);
}

static const struct check_case cases[] = {
	CHECK_CASE(the_range_allows_what_is_used),
	CHECK_CASE(the_range_does_not_allow_all_there_is),
	CHECK_CASE(odd_ranges_are_refused),
	CHECK_CASE(a_range_with_a_hole_is_taken),
	CHECK_CASE(a_mapped_file_is_refused),
	CHECK_CASE(a_range_that_another_holds_is_ebusy),
	CHECK_CASE(ebusy_leaves_the_rest_unregistered),
	CHECK_CASE(two_libraries_serve_their_own_ranges),
	CHECK_CASE(a_copy_through_the_wrong_descriptor_lands),
	CHECK_CASE(unregister_turns_missing_pages_to_zeros),
	CHECK_CASE(close_turns_missing_pages_to_zeros),
	CHECK_CASE(unregister_keeps_loaded_pages),
	CHECK_CASE(part_of_a_range_may_be_unregistered),
	CHECK_CASE(pages_present_before_stay),
	CHECK_CASE(mlockall_makes_pages_present_before),
	CHECK_CASE(a_terabyte_can_be_registered),
};
CHECK_MAIN(cases)
