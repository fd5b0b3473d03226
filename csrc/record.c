#include "record.h"

#include <string.h>
#include <sys/mman.h>

#include "reserve.h"
#include "stats.h"

/* 256 MiB of addresses: a terabyte of clusters of 64 KiB. What is touched after so many is not in
 * the record. */
#define ITEMS_MAX (1ull << 24)

static uint64_t items_bytes(const struct lr_record *record)
{
	return (record->room ? record->room : 1) * sizeof(struct lr_touched);
}

static uint64_t bits_bytes(const struct lr_record *record)
{
	return (record->clusters / 64 + 1) * 8;
}

int lr_record_open(struct lr_record *record, uint64_t clusters)
{
	memset(record, 0, sizeof(*record));
	record->clusters = clusters;
	record->room = clusters < ITEMS_MAX ? clusters : ITEMS_MAX;
	record->open_ns = lr_clock_ns();
	record->items = lr_reserve(items_bytes(record));
	record->is_noted = lr_reserve(bits_bytes(record));
	if (record->items && record->is_noted)
		return LR_OK;
	lr_record_close(record);
	return LR_ERR_NOMEM;
}

void lr_record_close(struct lr_record *record)
{
	if (record->items)
		munmap(record->items, items_bytes(record));
	if (record->is_noted)
		munmap((void *)record->is_noted, bits_bytes(record));
	record->items = NULL;
	record->is_noted = NULL;
}

void lr_record_note(struct lr_record *record, uint64_t cluster)
{
	uint64_t slot, bit = 1ull << (cluster % 64);
	_Atomic uint64_t *word;

	if (!record->items)
		return;
	word = &record->is_noted[cluster / 64];
	/* Relaxed: the bit only decides who notes it. */
	if ((atomic_load_explicit(word, memory_order_relaxed) & bit)
	    || (atomic_fetch_or_explicit(word, bit, memory_order_relaxed) & bit))
		return;
	slot = atomic_fetch_add_explicit(&record->count, 1, memory_order_relaxed);
	if (slot >= record->room)
		return;
	record->items[slot].cluster = cluster;
	/* Release: partner of the acquire in lr_record_get. Never 0: that is what an entry has
	 * which is not whole. */
	__atomic_store_n(&record->items[slot].time_ns, lr_clock_ns() - record->open_ns + 1,
			 __ATOMIC_RELEASE);
}

uint64_t lr_record_get(const struct lr_record *record, uint64_t first,
		       struct lr_touched *ret_touched, uint64_t room)
{
	uint64_t count, copied = 0;

	if (!record->items)
		return 0;
	count = atomic_load_explicit(&record->count, memory_order_relaxed);
	if (count > record->room)
		count = record->room;
	for (; first < count && copied < room; first++, copied++) {
		uint64_t time_ns = __atomic_load_n(&record->items[first].time_ns, __ATOMIC_ACQUIRE);

		ret_touched[copied] = (struct lr_touched){
			.cluster = time_ns ? record->items[first].cluster : UINT64_MAX,
			.time_ns = time_ns,
		};
	}
	return copied;
}
