#include "reserve.h"

#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>

/* Kinds of buffers: a decoder has one of each of two sizes. */
#define SPARES 2u
/* More is not kept. */
#define SPARE_BYTES_MAX (8u << 20)

/* A buffer that is nobody's begins with its size. */
static _Atomic(uint64_t *) spares[SPARES];

void *lr_reserve(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	madvise(memory, bytes, MADV_NOHUGEPAGE);
	return memory;
}

/* Put a buffer, or NULL, into a slot, and get what was there. Acquire and release: who takes it
 * sees the size that was written by who gave it. */
static uint64_t *swap(uint32_t slot, uint64_t *buffer)
{
	return atomic_exchange_explicit(&spares[slot], buffer, memory_order_acq_rel);
}

static void put(uint64_t *buffer)
{
	for (uint32_t slot = 0; slot < SPARES && buffer; slot++)
		buffer = swap(slot, buffer);
	if (buffer)
		munmap(buffer, *buffer);
}

void *lr_buffer_take(size_t bytes)
{
	for (uint32_t slot = 0; slot < SPARES; slot++) {
		uint64_t *found = swap(slot, NULL);

		if (found && *found == bytes)
			return found;
		if (found)
			put(found);
	}
	return lr_reserve(bytes);
}

void lr_buffer_give(void *buffer, size_t bytes)
{
	if (bytes > SPARE_BYTES_MAX) {
		munmap(buffer, bytes);
		return;
	}
	*(uint64_t *)buffer = bytes;
	put(buffer);
}
