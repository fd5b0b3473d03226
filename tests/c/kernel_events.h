/*
 * kernel_events: what the tests of the kernel's events share: a range that is half loaded, and a
 * thread that makes a system call. Include after kernel.h.
 */
#ifndef LR_TESTS_KERNEL_EVENTS_H
#define LR_TESTS_KERNEL_EVENTS_H

#include "kernel.h"

#define PAGES  8
#define BYTES  (PAGES * KERNEL_PAGE)
#define EVENTS (UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP)

/* Newer than some systems' headers. */
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE  103
#endif

static int uffd;
static uint8_t *memory;
static uint8_t data[BYTES];

static inline uint8_t *page(size_t number)
{
	return memory + number * KERNEL_PAGE;
}

static inline void load(size_t first, size_t pages)
{
	CHECK_EQ(kernel_copy(uffd, page(first), data + first * KERNEL_PAGE, pages, NULL), 0);
}

/* A registered range of PAGES, with the same room behind it that is mapped and not registered; its
 * first half is loaded. All three kinds of event are asked for. */
static inline void set_up(void)
{
	uffd = kernel_open(EVENTS);
	memory = kernel_map(2 * PAGES);
	kernel_fill(data, 0, PAGES);
	CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
	load(0, PAGES / 2);
}

/* ---- A thread that makes a system call, and waits in it until its event is read ------- */

struct caller {
	pthread_t thread;
	long number, arguments[6], result;
	int error;
	atomic_int done;
};

static inline void *call(void *argument)
{
	struct caller *caller = argument;
	const long *a = caller->arguments;
	caller->result = syscall(caller->number, a[0], a[1], a[2], a[3], a[4], a[5]);
	caller->error = errno;
	atomic_store(&caller->done, 1);
	return NULL;
}

static inline void start_call(struct caller *caller, long number, const void *at, size_t bytes,
			      long third, long fourth, const void *fifth)
{
	memset(caller, 0, sizeof(*caller));
	caller->number = number;
	long arguments[6] = {(long)at, (long)bytes, third, fourth, (long)fifth, 0};
	if (number == SYS_mmap)
		arguments[4] = -1;
	memcpy(caller->arguments, arguments, sizeof(arguments));
	CHECK_EQ(pthread_create(&caller->thread, NULL, call, caller), 0);
}

static inline void start_madvise(struct caller *caller, size_t first, size_t pages, int advice)
{
	start_call(caller, SYS_madvise, page(first), pages * KERNEL_PAGE, advice, 0, NULL);
}

static inline void start_mremap(struct caller *caller, size_t first, size_t old_pages, size_t pages,
				int flags, const uint8_t *target)
{
	start_call(caller, SYS_mremap, page(first), old_pages * KERNEL_PAGE,
		   (long)(pages * KERNEL_PAGE), flags, target);
}

static inline uint8_t *join_call(struct caller *caller)
{
	CHECK_EQ(pthread_join(caller->thread, NULL), 0);
	if (caller->result == -1)
		CHECK_FAIL("system call %ld: %s", caller->number, strerror(caller->error));
	return (uint8_t *)caller->result;
}

/* Its event is in the queue, and it has not come back. */
static inline void wait_for_event(struct caller *caller)
{
	CHECK_EQ(kernel_poll(uffd, KERNEL_WAIT_MS), POLLIN);
	kernel_settle();
	CHECK_EQ(atomic_load(&caller->done), 0);
}

static inline void read_range(int event, const uint8_t *start, size_t pages)
{
	struct uffd_msg message;
	kernel_read(uffd, &message, 1);
	CHECK_EQ(message.event, event);
	CHECK_EQ(message.arg.remove.start, (uintptr_t)start);
	CHECK_EQ(message.arg.remove.end, (uintptr_t)start + pages * KERNEL_PAGE);
}

static inline void read_remap(const uint8_t *from, const uint8_t *to, size_t pages)
{
	struct uffd_msg message;
	kernel_read(uffd, &message, 1);
	CHECK_EQ(message.event, UFFD_EVENT_REMAP);
	CHECK_EQ(message.arg.remap.from, (uintptr_t)from);
	CHECK_EQ(message.arg.remap.to, (uintptr_t)to);
	CHECK_EQ(message.arg.remap.len, pages * KERNEL_PAGE);
}

/* A touch there asks the userfaultfd, and gets what is given to it. */
static inline void check_served(uint8_t *address)
{
	struct kernel_toucher toucher;
	struct uffd_msg message;
	kernel_toucher_start(&toucher, address, 0);
	kernel_read(uffd, &message, 1);
	CHECK_EQ(message.event, UFFD_EVENT_PAGEFAULT);
	CHECK_EQ(message.arg.pagefault.address, (uintptr_t)address);
	CHECK_EQ(kernel_copy(uffd, address, data + 7, 1, NULL), 0);
	CHECK_EQ(kernel_toucher_join(&toucher), data[7]);
}

#endif
