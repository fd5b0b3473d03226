/* Memory at an address of the caller's choice, and what memory costs. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "error.h"

#ifndef MAP_FIXED_NOREPLACE /* Linux 4.17 */
#define MAP_FIXED_NOREPLACE 0x100000
#endif

int lr_memory_map(uint64_t address, uint64_t length, struct lr_problem *ret_problem)
{
	void *wanted = (void *)(uintptr_t)address;
	void *memory =
		mmap(wanted, length, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

	if (memory == MAP_FAILED)
		return lr_problem_from_errno(ret_problem, errno);
	if (memory != wanted) {
		/* A kernel before 4.17 takes the address as a hint. */
		munmap(memory, length);
		return lr_problem_from_errno(ret_problem, EEXIST);
	}
	return LR_OK;
}

int lr_memory_unmap(uint64_t address, uint64_t length)
{
	return munmap((void *)(uintptr_t)address, length) < 0 ? lr_problem_from_errno(NULL, errno)
							      : LR_OK;
}

/* In /proc/PID/pagemap: in swap; and present and not shared with anything, as the zero page always
 * is. */
#define PAGEMAP_SWAPPED   (1ull << 62)
#define PAGEMAP_PRESENT   (1ull << 63)
#define PAGEMAP_EXCLUSIVE (1ull << 56)

static int64_t resident_in_run(int pagemap, uint64_t page_size, const struct lr_page_run *run,
			       uint64_t *entries, uint64_t room)
{
	int64_t resident = 0;

	for (uint64_t at = run->start; at < run->end;) {
		uint64_t wanted =
			(run->end - at) / page_size < room ? (run->end - at) / page_size : room;
		ssize_t got = pread(pagemap, entries, wanted * 8, (off_t)(at / page_size * 8));

		if (got < 8)
			break;
		for (ssize_t i = 0; i < got / 8; i++)
			if (entries[i] & PAGEMAP_SWAPPED
			    || (entries[i] & PAGEMAP_PRESENT && entries[i] & PAGEMAP_EXCLUSIVE))
				resident += (int64_t)page_size;
		at += (uint64_t)got / 8 * page_size;
	}
	return resident;
}

int64_t lr_memory_get_resident(uint64_t address, uint64_t length)
{
	uint64_t page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t page = address / page_size, end = (address + length + page_size - 1) / page_size;
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct lr_page_run runs[64];
	uint64_t entries[512];
	int64_t resident = 0;

	if (pagemap < 0)
		return lr_problem_from_errno(NULL, errno);
	page *= page_size;
	end *= page_size;
	while (page < end) {
		/* Only where there is something: a region of 64 GiB has 128 MiB of pagemap. */
		int64_t count = lr_pagemap_runs(pagemap, page, end, runs, 64, &page, NULL);

		if (count < 0) {
			resident = count;
			break;
		}
		for (int64_t i = 0; i < count; i++)
			resident += resident_in_run(pagemap, page_size, &runs[i], entries, 512);
	}
	close(pagemap);
	return resident;
}
