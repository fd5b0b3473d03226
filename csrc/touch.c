/* Touching memory to see what it costs: lr_touch. A page that is fenced is counted, not died of. */
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>

#include "inline.h"
#include "signals.h"
#include "stats.h"

/* A signal handler leaves a touch through this. */
struct escape {
	sigjmp_buf to;
	uint64_t start;
	uint64_t end;
};

/* NULL but within lr_touch. The signal handler reads it, in threads that never were here too, where
 * the usual kind of thread-local variable might have to be allocated first. */
static _Thread_local struct escape *volatile escape __attribute__((tls_model("initial-exec")));

static const int signals[] = {SIGBUS, SIGSEGV};
#define SIGNALS (sizeof(signals) / sizeof(signals[0]))

static bool escape_from(int number, const siginfo_t *info, void *context)
{
	struct escape *own = escape;
	uint64_t address = (uint64_t)(uintptr_t)info->si_addr;

	(void)number;
	(void)context;
	/* A positive code: the kernel's own, for a fault; others send signals with 0 or less. */
	if (own && info->si_code > 0 && address >= own->start && address < own->end)
		siglongjmp(own->to, 1);
	return false;
}

/* Returns how many of them are: all, but where the program has piled up handlers. */
static unsigned catch_signals(void)
{
	unsigned caught = 0;

	while (caught < SIGNALS
	       && lr_signals_get(signals[caught], LR_SIGNALS_TOUCH, escape_from) == LR_OK)
		caught++;
	return caught;
}

static void release_signals(unsigned caught)
{
	while (caught > 0)
		lr_signals_put(signals[--caught], LR_SIGNALS_TOUCH);
}

static uint64_t faults_of_this_thread(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	/* The kernel does not count those that the thread answered for itself. */
	return (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt + lr_inline_answered();
}

static uint64_t mix(uint64_t value, uint64_t key)
{
	value = (value ^ key) * 0x9e3779b97f4a7c15ull;
	return value ^ value >> 29;
}

/* Number `index` of a random permutation of 0 … count - 1: a Feistel network over the next power of
 * four, walked until it lands inside. Needs no memory, whatever the size. */
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

/* What reading a byte took: 0 without a page fault. */
static uint32_t touch_page(const volatile uint8_t *page)
{
	uint64_t faults = faults_of_this_thread();
	uint64_t begin_ns = lr_clock_ns(), latency_ns;

	(void)*page;
	latency_ns = lr_clock_ns() - begin_ns;
	if (faults_of_this_thread() == faults)
		return 0;
	return latency_ns < LR_TOUCH_FAILED ? (uint32_t)latency_ns : (uint32_t)LR_TOUCH_FAILED - 1;
}

uint64_t lr_touch(const void *address, uint64_t length, uint32_t page_size, uint32_t order,
		  uint64_t seed, uint64_t first, uint64_t count, uint32_t *ret_latency_ns)
{
	const volatile uint8_t *memory = address;
	uint64_t pages = length / page_size + (length % page_size != 0);
	/* Kept over a jump, so in memory. */
	volatile uint64_t done = 0;
	volatile unsigned caught = 0;
	/* In whole pages: the kernel may name the page only. */
	uint64_t start = (uint64_t)(uintptr_t)address;
	struct escape own = {
		.start = start & ~(uint64_t)(page_size - 1),
		.end = start + pages * page_size,
	};

	if (ret_latency_ns) {
		/* Once for nothing: the clock's own pages may fault at first use. */
		touch_page((const volatile uint8_t *)&own);
		caught = catch_signals();
		escape = &own;
		/* With the mask: all signals are blocked in a handler, and the next fault would
		 * kill.
		 */
		if (sigsetjmp(own.to, 1)) {
			ret_latency_ns[done] = LR_TOUCH_FAILED;
			done = done + 1;
		}
	}
	for (; done < count && first + done < pages; done = done + 1) {
		uint64_t number = first + done;
		uint64_t page = order == LR_TOUCH_RANDOM ? permute(number, pages, seed) : number;

		if (ret_latency_ns)
			ret_latency_ns[done] = touch_page(memory + page * page_size);
		else
			(void)memory[page * page_size];
	}
	if (ret_latency_ns) {
		escape = NULL;
		release_signals(caught);
	}
	return done;
}
