/*
 * A sanitizer takes memory of its own, many times what is asked for, so a limit on the process says
 * nothing. What is asked for is counted: malloc by the sanitizer's hooks, mmap by the linker's
 * --wrap. Address space that costs nothing until it is touched (MAP_NORESERVE: restored regions,
 * notes for clusters) does not count.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "bounds.h"

#include <sanitizer/allocator_interface.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define BYTES_MAX (100ll << 20)
/* With sanitizers and coverage, which make it some five times slower. */
#define CPU_NS_MAX 1000000000ll

static atomic_llong live_bytes, most_bytes, begin_ns;

static void count(long long bytes)
{
	long long now = atomic_fetch_add(&live_bytes, bytes) + bytes;
	long long most = atomic_load(&most_bytes);

	while (now > most && !atomic_compare_exchange_weak(&most_bytes, &most, now))
		continue;
}

static void on_malloc(const volatile void *memory, size_t bytes)
{
	(void)bytes;
	count((long long)__sanitizer_get_allocated_size(memory));
}

static void on_free(const volatile void *memory)
{
	if (memory)
		count(-(long long)__sanitizer_get_allocated_size(memory));
}

void *__real_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *address, size_t bytes);
void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *address, size_t bytes);

/* The core's buffers are mapped, where the sanitizer sees no byte too many: a page without access
 * follows each. Which have one: few are there at once. */
#define GUARD_BYTES 4096u
#define GUARDED_MAX 256u
static _Atomic(void *) guarded[GUARDED_MAX];

static int guard_swap(void *from, void *to)
{
	for (unsigned i = 0; i < GUARDED_MAX; i++) {
		void *expected = from;

		if (atomic_compare_exchange_strong(&guarded[i], &expected, to))
			return 1;
	}
	return 0;
}

/* Never counted back: an image makes few, and the sum of all is a stricter bound than the most at
 * once. */
void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
	size_t whole = (bytes + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;
	uint8_t *made;

	if (!(flags & MAP_NORESERVE))
		count((long long)bytes);
	if (address || !(flags & MAP_ANONYMOUS) || whole > BYTES_MAX)
		return __real_mmap(address, bytes, protection, flags, fd, offset);
	made = __real_mmap(NULL, whole + GUARD_BYTES, protection, flags, fd, offset);
	if (made == MAP_FAILED)
		return made;
	if (guard_swap(NULL, made))
		mprotect(made + whole, GUARD_BYTES, PROT_NONE);
	else
		__real_munmap(made + whole, GUARD_BYTES);
	return made;
}

int __wrap_munmap(void *address, size_t bytes)
{
	size_t whole = (bytes + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;

	return __real_munmap(address, whole + (guard_swap(address, NULL) ? GUARD_BYTES : 0));
}

static long long cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}

void bounds_init(void)
{
	if (__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) == 0)
		abort();
}

void bounds_begin(void)
{
	atomic_store(&live_bytes, 0);
	atomic_store(&most_bytes, 0);
	atomic_store(&begin_ns, cpu_ns());
}

void bounds_end(void)
{
	long long bytes = atomic_load(&most_bytes), ns = cpu_ns() - atomic_load(&begin_ns);

	if (bytes <= BYTES_MAX && ns <= CPU_NS_MAX)
		return;
	fprintf(stderr, "one image took %lld bytes of memory and %lld ms of processor time\n",
		bytes, ns / 1000000);
	abort();
}
