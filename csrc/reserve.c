#include "reserve.h"

#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>

/* More is not kept. */
#define SPARE_BYTES_MAX (512u << 10)

/* A buffer that is nobody's begins with its size. */
static _Atomic(uint64_t *) spare;

void *lr_reserve(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	madvise(memory, bytes, MADV_NOHUGEPAGE);
	return memory;
}

void *lr_buffer_take(size_t bytes)
{
	/* Acquire and release: partners of those in lr_buffer_give. */
	uint64_t *found = atomic_exchange_explicit(&spare, NULL, memory_order_acq_rel);
	void *buffer;

	if (found && *found == bytes)
		return found;
	if (found)
		munmap(found, *found);
	buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return buffer == MAP_FAILED ? NULL : buffer;
}

void lr_buffer_give(void *buffer, size_t bytes)
{
	uint64_t *given = buffer;

	if (bytes > SPARE_BYTES_MAX) {
		munmap(buffer, bytes);
		return;
	}
	*given = bytes;
	given = atomic_exchange_explicit(&spare, given, memory_order_acq_rel);
	if (given)
		munmap(given, *given);
}
