#include "pageset.h"

#include <sys/mman.h>

int lr_pageset_open(struct lr_pageset *set, uint64_t clusters)
{
	void *states = mmap(NULL, clusters ? clusters : 1, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	set->states = NULL;
	set->clusters = clusters;
	if (states == MAP_FAILED)
		return LR_ERR_NOMEM;
	/* One touched state must not cost a huge page. */
	madvise(states, clusters ? clusters : 1, MADV_NOHUGEPAGE);
	set->states = states;
	return LR_OK;
}

void lr_pageset_close(struct lr_pageset *set)
{
	if (set->states)
		munmap((void *)set->states, set->clusters ? set->clusters : 1);
	set->states = NULL;
}
