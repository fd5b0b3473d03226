/*
 * Threads that look at a page in the moment in which it comes: for tests/integration/
 * test_torn_pages.py, which builds a shared library from it. Needs libc only.
 *
 * All threads of a run go from page to page together; what each finds is compared word by word with
 * what the page must be. Nothing here waits for a page in any other way than by touching it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE  4096
#define WORDS (PAGE / 8)

enum role {
	READ_UP = 0,   /* all words, from one of its own on */
	READ_DOWN = 1, /* the same backwards */
	ACROSS = 2,    /* from the middle of the page before to its own middle */
	SYSTEM = 3,    /* a copy that the kernel makes */
	STORE = 4,     /* write its own word, then read all */
	TOUCH = 5,     /* one byte */
};

struct run {
	uint8_t *memory;
	const uint8_t *expected;
	const uint32_t *order;
	uint32_t count; /* of pages in order */
	uint32_t threads;
	uint32_t spread;         /* thread t looks at page order[i] + t % spread */
	const uint8_t *roles;    /* of each thread */
	atomic_uint_fast64_t at; /* arrivals */
	atomic_uint_fast64_t wrong;
	atomic_uint_fast64_t where; /* page of the first wrong word */
};

struct worker {
	struct run *run;
	uint32_t number;
	int pipe[2];
};

static void fail(struct run *run, uint64_t page)
{
	if (atomic_fetch_add(&run->wrong, 1) == 0)
		atomic_store(&run->where, page);
}

/* What thread `number` stores in its own word of a page. */
static uint64_t mark(uint32_t number, uint64_t page)
{
	return ~(((uint64_t)number << 40) + page);
}

/* A word of a page may be what the image has, or what a STORE thread puts there. */
static int is_right(const struct run *run, uint64_t page, uint32_t word, uint64_t got)
{
	uint64_t expected;

	memcpy(&expected, run->expected + page * PAGE + word * 8, 8);
	if (got == expected)
		return 1;
	return word < run->threads && run->roles[word] == STORE && got == mark(word, page);
}

static void compare(struct run *run, uint64_t page, const volatile uint64_t *words, uint32_t first,
		    int down)
{
	for (uint32_t i = 0; i < WORDS; i++) {
		uint32_t word = (first + (down ? WORDS - i : i)) % WORDS;

		if (!is_right(run, page, word, words[word])) {
			fail(run, page);
			return;
		}
	}
}

static void look(struct worker *worker, uint64_t page)
{
	struct run *run = worker->run;
	uint8_t *at = run->memory + page * PAGE;
	volatile uint64_t *words = (volatile uint64_t *)at;
	uint64_t copy[WORDS];
	uint32_t number = worker->number;

	switch (run->roles[number]) {
	case READ_UP:
	case READ_DOWN:
		compare(run, page, words, number * 61 % WORDS, run->roles[number] == READ_DOWN);
		break;
	case ACROSS:
		for (uint32_t i = page ? 0 : WORDS / 2; i < WORDS; i++) {
			uint64_t of = i < WORDS / 2 ? page - 1 : page;
			uint64_t got = words[(int64_t)i - WORDS / 2];

			if (!is_right(run, of, (i + WORDS / 2) % WORDS, got))
				fail(run, page);
		}
		break;
	case SYSTEM:
		if (write(worker->pipe[1], at, PAGE) != PAGE
		    || read(worker->pipe[0], copy, PAGE) != PAGE)
			fail(run, page);
		else
			compare(run, page, copy, 0, 0);
		break;
	case STORE:
		words[number] = mark(number, page);
		compare(run, page, words, WORDS - 1, 1);
		if (words[number] != mark(number, page))
			fail(run, page);
		break;
	default:
		if (*(volatile uint8_t *)(at + number * 100)
		    != run->expected[page * PAGE + number * 100])
			fail(run, page);
	}
}

/* Wait until all threads have come so far. They share cores: who is early lets the others run. */
static void meet(struct run *run, uint64_t round)
{
	uint64_t all = (round + 1) * run->threads;

	atomic_fetch_add(&run->at, 1);
	for (int spins = 0; atomic_load(&run->at) < all; spins++)
		if (spins > 50)
			sched_yield();
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct run *run = worker->run;

	for (uint32_t i = 0; i < run->count; i++) {
		meet(run, i);
		look(worker, run->order[i] + worker->number % run->spread);
	}
	return NULL;
}

/* Returns how many times something was wrong; *ret_where is the first page of it. */
uint64_t torn_run(uint8_t *memory, const uint8_t *expected, const uint32_t *order, uint32_t count,
		  const uint8_t *roles, uint32_t threads, uint32_t spread, uint64_t *ret_where)
{
	struct run run = {
		.memory = memory,
		.expected = expected,
		.order = order,
		.count = count,
		.threads = threads,
		.spread = spread,
		.roles = roles,
	};
	struct worker *workers = calloc(threads, sizeof(*workers));
	pthread_t *started = calloc(threads, sizeof(*started));

	if (!workers || !started)
		abort();
	for (uint32_t i = 0; i < threads; i++) {
		workers[i].run = &run;
		workers[i].number = i;
		if (pipe(workers[i].pipe) || pthread_create(&started[i], NULL, work, &workers[i]))
			abort();
	}
	for (uint32_t i = 0; i < threads; i++) {
		pthread_join(started[i], NULL);
		close(workers[i].pipe[0]);
		close(workers[i].pipe[1]);
	}
	/* No store was lost: whatever came to the page came before it. */
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t t = 0; t < threads; t++) {
			uint64_t page = order[i] + t % spread;

			if (roles[t] == STORE
			    && ((uint64_t *)(memory + page * PAGE))[t] != mark(t, page))
				fail(&run, page);
		}
	free(workers);
	free(started);
	*ret_where = atomic_load(&run.where);
	return atomic_load(&run.wrong);
}

/* Read another process's pages in an order, again and again until all could be read. Returns how
 * many were wrong; *ret_refused counts the reads that gave EFAULT. -1: another error. */
int64_t torn_peek(int pid, uint64_t memory, const uint8_t *expected, const uint32_t *order,
		  uint32_t count, uint64_t *ret_refused)
{
	uint8_t copy[PAGE], *done = calloc(count, 1);
	int64_t wrong = 0;

	*ret_refused = 0;
	for (uint32_t left = count; left > 0;) {
		for (uint32_t i = 0; i < count; i++) {
			struct iovec here = {copy, PAGE};
			struct iovec there = {
				(void *)(uintptr_t)(memory + (uint64_t)order[i] * PAGE), PAGE};
			ssize_t got = done[i] ? 0 : process_vm_readv(pid, &here, 1, &there, 1, 0);

			if (got < 0 && errno != EFAULT)
				return -1;
			if (got < 0)
				++*ret_refused;
			if (got <= 0)
				continue;
			wrong += memcmp(copy, expected + (uint64_t)order[i] * PAGE, (size_t)got)
				 != 0;
			if (got == PAGE)
				done[i] = 1, left--;
		}
		sched_yield();
	}
	free(done);
	return wrong;
}
