/*
 * What a pager costs that needs no userfaultfd: memory without access, and a SIGSEGV handler that
 * allows access to the touched page and fills it. segv_pager PAGES sequential|random: prints one
 * JSON object with what a touch took, how many mappings there are in the end, and the number of the
 * touch at which the kernel had no more of them (ENOMEM; null: it never came to that).
 *
 * It is not a fair peer: between mprotect and the end of the copy other threads read zeros, system
 * calls fail with EFAULT, and it must not meet another handler of SIGSEGV.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE 4096ul

static uint8_t ready[PAGE];
static sigjmp_buf no_more;

static void handle(int number, siginfo_t *info, void *context)
{
	uint8_t *page = (uint8_t *)((uintptr_t)info->si_addr & ~(PAGE - 1));

	(void)number;
	(void)context;
	if (mprotect(page, PAGE, PROT_READ | PROT_WRITE) < 0)
		siglongjmp(no_more, errno);
	memcpy(page, ready, PAGE);
}

static uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static unsigned long count_mappings(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long count = 0;
	int letter;

	while (maps && (letter = fgetc(maps)) != EOF)
		count += letter == '\n';
	return count;
}

static int compare(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

/* Fisher and Yates, with a generator of its own. */
static void shuffle(uint32_t *order, unsigned long count)
{
	uint64_t state = 88172645463325252ull;

	for (unsigned long i = count - 1; i > 0; i--) {
		unsigned long other;
		uint32_t kept = order[i];

		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		other = state % (i + 1);
		order[i] = order[other];
		order[other] = kept;
	}
}

static void show(uint32_t *latency_ns, unsigned long done, int is_over)
{
	unsigned long mappings = count_mappings();
	double sum_ns = 0;

	for (unsigned long i = 0; i < done; i++)
		sum_ns += latency_ns[i];
	qsort(latency_ns, done, sizeof(latency_ns[0]), compare);
	printf("{\"pages\": %lu, \"mean\": %.3f, \"p50\": %.3f, \"p99\": %.3f, \"mappings\": %lu, ",
	       done, done ? sum_ns / 1000 / (double)done : 0,
	       done ? latency_ns[done / 2] / 1000.0 : 0,
	       done ? latency_ns[done * 99 / 100] / 1000.0 : 0, mappings);
	if (is_over)
		printf("\"enomem_at\": %lu}\n", done);
	else
		printf("\"enomem_at\": null}\n");
}

int main(int argc, char **argv)
{
	unsigned long pages = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
	struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
	uint32_t *order = calloc(pages + 1, sizeof(*order));
	uint32_t *latency_ns = calloc(pages + 1, sizeof(*latency_ns));
	volatile unsigned long done = 0;
	volatile uint8_t *memory;

	if (!pages || !order || !latency_ns)
		return 2;
	memory = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		      -1, 0);
	if (memory == MAP_FAILED)
		return 2;
	madvise((void *)memory, pages * PAGE, MADV_NOHUGEPAGE);
	memset(ready, 'A', sizeof(ready));
	for (unsigned long i = 0; i < pages; i++)
		order[i] = (uint32_t)i;
	if (strcmp(argv[2], "random") == 0)
		shuffle(order, pages);
	sigaction(SIGSEGV, &action, NULL);
	if (sigsetjmp(no_more, 1) != 0) {
		show(latency_ns, done, 1);
		return 0;
	}
	for (; done < pages; done = done + 1) {
		uint64_t begin_ns = clock_ns();

		(void)memory[order[done] * PAGE];
		latency_ns[done] = (uint32_t)(clock_ns() - begin_ns);
	}
	show(latency_ns, done, 0);
	return 0;
}
