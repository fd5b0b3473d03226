#include "reserve.h"

#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* Kinds of buffers: a decoder has one of each of two sizes. */
#define SPARES 2u
/* More is not kept. */
#define SPARE_BYTES_MAX (8u << 20)

/* That are looked for at once. */
#define ROOM_PAGES_MAX 256u

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

bool lr_reserve_is_room(size_t bytes)
{
	/* Those that could not be had are missing, which is not told. */
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	uint8_t is_there[ROOM_PAGES_MAX];
	size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page;
	bool is_room = memory != MAP_FAILED && pages <= ROOM_PAGES_MAX
		       && mincore(memory, bytes, is_there) == 0;

	for (size_t i = 0; i < pages && is_room; i++)
		is_room = is_there[i] & 1;
	if (memory != MAP_FAILED)
		munmap(memory, bytes);
	return is_room;
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
