/* Memory at an address of the caller's choice, and touching memory to see what it costs. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "error.h"
#include "stats.h"

#ifndef MAP_FIXED_NOREPLACE /* Linux 4.17 */
#define MAP_FIXED_NOREPLACE 0x100000
#endif

int lr_memory_map(uint64_t address, uint64_t length, struct lr_problem *ret_problem)
{
	void *wanted = (void *)(uintptr_t)address;
	void *memory = mmap(wanted, length, PROT_READ | PROT_WRITE,
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
	return munmap((void *)(uintptr_t)address, length) < 0 ? lr_problem_from_errno(NULL, errno) : LR_OK;
}

static uint64_t faults_of_this_thread(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
}

static uint64_t mix(uint64_t value, uint64_t key)
{
	value = (value ^ key) * 0x9e3779b97f4a7c15ull;
	return value ^ value >> 29;
}

/* Number `index` of a random permutation of 0 … count - 1: a Feistel network over the next power of four, walked until
 * it lands inside. Needs no memory, whatever the size. */
static uint64_t permute(uint64_t index, uint64_t count, uint64_t seed)
{
	unsigned half_bits = 1;
	uint64_t mask;

	while (half_bits < 32 && 1ull << (2 * half_bits) < count)
		half_bits++;
	mask = (1ull << half_bits) - 1;
	do {
		uint64_t left = index >> half_bits, right = index & mask;

		for (unsigned round = 0; round < 4; round++) {
			uint64_t next = left ^ (mix(right, seed + round) & mask);

			left = right;
			right = next;
		}
		index = left << half_bits | right;
	} while (index >= count);
	return index;
}

uint64_t lr_touch(const void *address, uint64_t length, uint32_t page_size, uint32_t order, uint64_t seed,
		  uint64_t first, uint64_t count, uint32_t *ret_latency_ns)
{
	const volatile uint8_t *memory = address;
	uint64_t pages = length / page_size + (length % page_size != 0);
	uint64_t before, done;

	for (done = 0; done < count && first + done < pages; done++) {
		uint64_t number = first + done;
		uint64_t page = order == LR_TOUCH_RANDOM ? permute(number, pages, seed) : number;
		uint64_t begin_ns, latency_ns;

		before = faults_of_this_thread();
		begin_ns = lr_clock_ns();
		(void)memory[page * page_size];
		latency_ns = lr_clock_ns() - begin_ns;
		if (!ret_latency_ns)
			continue;
		if (faults_of_this_thread() == before)
			latency_ns = 0;
		ret_latency_ns[done] = latency_ns < UINT32_MAX ? (uint32_t)latency_ns : UINT32_MAX;
	}
	return done;
}
