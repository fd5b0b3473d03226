#include "pageset.h"

uint64_t lr_pageset_states_bytes(uint64_t clusters)
{
	return clusters ? clusters : 1;
}

uint64_t lr_pageset_settled_bytes(uint64_t pages)
{
	return (pages / 64 + 1) * 8;
}

void lr_pageset_open(struct lr_pageset *set, uint64_t clusters, uint64_t pages, void *states,
		     void *settled)
{
	*set = (struct lr_pageset){
		.states = states,
		.settled = settled,
		.clusters = clusters,
		.pages = pages,
	};
}

/* Bits of a word from `low` up to `high`, which is not in it. */
static uint64_t bits_between(uint64_t low, uint64_t high)
{
	uint64_t below_high = high == 64 ? UINT64_MAX : (1ull << high) - 1;

	return below_high & ~((1ull << low) - 1);
}

uint64_t lr_pageset_next(const struct lr_pageset *set, uint64_t page, uint64_t end, bool is_settled)
{
	while (page < end) {
		uint64_t word =
			atomic_load_explicit(&set->settled[page / 64], memory_order_relaxed);

		word = (is_settled ? word : ~word) & bits_between(page % 64, 64);
		page -= page % 64;
		if (word) {
			page += (uint64_t)__builtin_ctzll(word);
			return page < end ? page : end;
		}
		page += 64;
	}
	return end;
}

uint64_t lr_pageset_count_missing(const struct lr_pageset *set, uint64_t page, uint64_t end)
{
	uint64_t missing = 0;

	while (page < end) {
		uint64_t stop = page - page % 64 + 64;
		uint64_t word =
			atomic_load_explicit(&set->settled[page / 64], memory_order_relaxed);

		if (stop > end)
			stop = end;
		word = ~word & bits_between(page % 64, (stop - 1) % 64 + 1);
		missing += (uint64_t)__builtin_popcountll(word);
		page = stop;
	}
	return missing;
}

void lr_pageset_settle(struct lr_pageset *set, uint64_t first_page, uint64_t pages)
{
	uint64_t end = first_page + pages;

	for (uint64_t page = first_page; page < end;) {
		uint64_t stop = page - page % 64 + 64;
		_Atomic uint64_t *word = &set->settled[page / 64];

		if (stop > end)
			stop = end;
		/* Not an atomic addition: there is one writer. */
		atomic_store_explicit(word,
				      atomic_load_explicit(word, memory_order_relaxed)
					      | bits_between(page % 64, (stop - 1) % 64 + 1),
				      memory_order_relaxed);
		page = stop;
	}
}
