#include "early.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "calls.h"
#include "error.h"
#include "procmem.h"

bool lr_early_is_empty(uint64_t start, uint64_t bytes)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct lr_page_run run;
	uint64_t next;
	int64_t count;

	if (pagemap < 0)
		return false;
	count = lr_procmem_runs_by_scan(pagemap, start, start + bytes, &run, 1, &next, NULL);
	close(pagemap);
	return count == 0;
}

int lr_early_drop(uint64_t start, uint64_t bytes, struct lr_problem *ret_problem)
{
	void *memory = (void *)(uintptr_t)start;

	if (lr_early_is_empty(start, bytes) || madvise(memory, bytes, MADV_DONTNEED) == 0)
		return LR_OK;
	if (errno == EINVAL && munlock(memory, bytes) == 0
	    && madvise(memory, bytes, MADV_DONTNEED) == 0) {
		lr_calls_mlock2(memory, bytes, MLOCK_ONFAULT);
		return LR_OK;
	}
	return lr_problem_from_errno(ret_problem, errno);
}
