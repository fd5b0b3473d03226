/* Faults answered by the thread that touched: right bytes, whatever owners and other threads do. */
#include "check.h"

#include <pthread.h>
#include <sched.h>

#include "inline_support.h"

static void counts_and_traces_what_it_does(void)
{
	struct lr_session_options options = {
		.privilege = LR_PRIVILEGE_AUTO,
		.fault_mode = LR_FAULT_INLINE,
		.trace_records = 64,
	};
	struct lr_trace_record records[64];
	struct lr_session_stats stats;
	struct lazy lazy = {0};

	image_make(&lazy.image, PAGE, PAGE, PAGE * 100, "dz");
	lazy_start(&lazy, &options);
	for (int page = 10; page < 20; page++)
		CHECK_EQ(lazy.memory[page * PAGE], lazy.expected[page * PAGE]);
	errno = 77;
	lazy.memory[21 * PAGE + 5] = 1;
	CHECK_EQ(errno, 77);
	stats = lazy_stats(&lazy);
	CHECK_EQ(stats.faults, 11);
	CHECK_EQ(stats.pages_copied, 5);
	CHECK_EQ(stats.pages_zeroed, 6);
	CHECK_EQ(stats.clusters_decoded, 5);
	CHECK_EQ(stats.service.count, 11);
	CHECK_EQ(lr_session_read_trace(lazy.session, records, 64, 0), 11);
	for (int i = 0; i < 11; i++)
		CHECK_EQ(records[i].thread, syscall(SYS_gettid));
	CHECK_EQ(records[0].offset, 10 * PAGE);
	CHECK_EQ(records[0].action, LR_ACTION_COPY);
	CHECK_EQ(records[10].address, (uintptr_t)lazy.memory + 21 * PAGE + 5);
	CHECK_EQ(records[10].action, LR_ACTION_ZEROPAGE);
#ifdef __x86_64__
	CHECK_EQ(records[9].is_write, 0);
	CHECK_EQ(records[10].is_write, 1);
#endif
	lazy_close(&lazy);
}

/* ---- Many threads ---- */

#define THREADS 8

struct toucher {
	pthread_t thread;
	const struct lazy *lazies;
	unsigned count;
	uint64_t seed;
	uint64_t wrong;
};

static void *touch_at_random(void *argument)
{
	struct toucher *toucher = argument;

	for (int i = 0; i < 4000; i++) {
		const struct lazy *lazy = &toucher->lazies[(unsigned)i % toucher->count];
		uint64_t offset = image_random(&toucher->seed) % lazy->length;

		toucher->wrong += lazy->memory[offset] != lazy->expected[offset];
	}
	return NULL;
}

static void start(struct toucher *touchers, const struct lazy *lazies, unsigned count)
{
	for (unsigned i = 0; i < THREADS; i++) {
		touchers[i] = (struct toucher){.lazies = lazies, .count = count, .seed = i};
		CHECK_EQ(pthread_create(&touchers[i].thread, NULL, touch_at_random, &touchers[i]),
			 0);
	}
}

static void join(struct toucher *touchers)
{
	for (unsigned i = 0; i < THREADS; i++) {
		CHECK_EQ(pthread_join(touchers[i].thread, NULL), 0);
		CHECK_EQ(touchers[i].wrong, 0);
	}
}

/* More threads than there are hands, a fill, one that populates, and suspending meanwhile. */
static void serves_many_threads_with_a_fill(void)
{
	struct toucher touchers[THREADS];
	struct lazy lazy;
	uint64_t done = 0;

	lazy_open(&lazy, 65536, 8000000, "drzhhdddr");
	start(touchers, &lazy, 1);
	CHECK_EQ(lr_session_fill(lazy.session, NULL), LR_OK);
	for (int i = 0; i < 100; i++) {
		CHECK_EQ(lr_session_suspend(lazy.session, 0), LR_OK);
		sched_yield();
		CHECK_EQ(lr_session_resume(lazy.session, 0), LR_OK);
	}
	CHECK_EQ(lr_session_populate(lazy.session, 0, 4000000, 2000000, -1, &done, NULL), LR_OK);
	join(touchers);
	CHECK_MEM(lazy.memory, lazy.expected, lazy.length);
	lazy_close(&lazy);
}

/* Each fault finds its own session, and none of this is another's affair. */
static void serves_several_sessions_of_both_modes(void)
{
	struct toucher touchers[THREADS];
	struct lazy lazies[4];

	for (unsigned i = 0; i < 4; i++)
		lazy_open_as(&lazies[i], i % 2 ? 65536 : PAGE, 3000000 + i * 5000, "drzdh",
			     i == 1 ? LR_FAULT_THREAD : LR_FAULT_INLINE);
	/* One that was closed leaves a gap. */
	lazy_close(&lazies[0]);
	start(touchers, lazies + 1, 3);
	join(touchers);
	for (unsigned i = 1; i < 4; i++) {
		CHECK_MEM(lazies[i].memory, lazies[i].expected, lazies[i].length);
		lazy_close(&lazies[i]);
	}
}

/* ---- What owners do ---- */

struct race {
	const struct lazy *lazy;
	_Atomic uint64_t page; /* to be touched now */
	_Atomic bool is_over;
};

static void *touch_what_is_given_up(void *argument)
{
	struct race *race = argument;
	uint64_t last = UINT64_MAX;

	while (!atomic_load(&race->is_over)) {
		uint64_t page = atomic_load(&race->page);

		if (page != last)
			(void)*(volatile uint8_t *)(race->lazy->memory + page * PAGE);
		last = page;
	}
	return NULL;
}

/* Giving a page up while another thread loads it: zeros afterwards, never the image's bytes. It is
 * what the lock around looking and installing, and around reading and noting, is for. */
static void what_is_given_up_never_comes_back(void)
{
	enum { pages = 20000 };
	struct lazy lazy;
	struct race race = {.lazy = &lazy};
	pthread_t threads[3];

	lazy_open(&lazy, PAGE, pages * PAGE, "d");
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, touch_what_is_given_up, &race), 0);
	for (uint64_t page = 0; page < pages; page++) {
		uint8_t *at = lazy.memory + page * PAGE;

		atomic_store(&race.page, page);
		for (volatile uint64_t wait = 0; wait < page % 997; wait = wait + 1)
			continue;
		CHECK_CALL(madvise(at, PAGE, MADV_DONTNEED));
		CHECK_EQ(*(volatile uint64_t *)at, 0);
	}
	atomic_store(&race.is_over, true);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	lazy_close(&lazy);
}

static void check_zeros(const uint8_t *memory, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		CHECK_EQ(memory[i], 0);
}

/* Moved, made longer, left in place, unmapped: as in thread mode. */
static void follows_what_owners_do(void)
{
	struct lazy lazy;
	uint8_t *moved, *other;

	lazy_open(&lazy, 65536, 400 * PAGE, "drd");
	moved = mmap(NULL, 600 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		     0);
	CHECK(moved != MAP_FAILED);
	/* Pages 100 to 199 elsewhere, and longer by 200 pages of zeros, more than are given at
	 * once. */
	CHECK_EQ(mremap(lazy.memory + 100 * PAGE, 100 * PAGE, 300 * PAGE,
			MREMAP_MAYMOVE | MREMAP_FIXED, moved),
		 moved);
	check_zeros(moved + 100 * PAGE, 200 * PAGE);
	CHECK_MEM(moved, lazy.expected + 100 * PAGE, 100 * PAGE);
	/* Pages 300 to 349 leave their old place mapped: zeros there. */
	other = mremap(lazy.memory + 300 * PAGE, 50 * PAGE, 50 * PAGE,
		       MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	CHECK(other != MAP_FAILED);
	check_zeros(lazy.memory + 300 * PAGE, 50 * PAGE);
	CHECK_MEM(other, lazy.expected + 300 * PAGE, 50 * PAGE);
	/* Pages 200 to 209 are gone, 210 to 219 cannot be written to, 220 to 229 are locked: split
	 * mappings. */
	CHECK_CALL(munmap(lazy.memory + 200 * PAGE, 10 * PAGE));
	CHECK_CALL(mprotect(lazy.memory + 210 * PAGE, 10 * PAGE, PROT_READ));
	CHECK_CALL(mlock2(lazy.memory + 220 * PAGE, 10 * PAGE, MLOCK_ONFAULT));
	CHECK_EQ(check_touch(lazy.memory + 205 * PAGE, 0), SIGSEGV);
	CHECK_MEM(lazy.memory + 210 * PAGE, lazy.expected + 210 * PAGE, 90 * PAGE);
	CHECK_MEM(lazy.memory + 350 * PAGE, lazy.expected + 350 * PAGE, 50 * PAGE);
	CHECK_MEM(lazy.memory, lazy.expected, 100 * PAGE);
	munmap(moved, 600 * PAGE);
	munmap(other, 50 * PAGE);
	lazy_close(&lazy);
}

/* The same, in memory of ours rather than the session's. */
static void attach_own(struct lazy *lazy)
{
	struct lr_session_options options = {
		.privilege = LR_PRIVILEGE_AUTO,
		.fault_mode = LR_FAULT_INLINE,
	};

	lr_session_close(lazy->session);
	CHECK_EQ(lr_session_open(lazy->opened, &options, &lazy->session, NULL), LR_OK);
	lazy->memory = mmap(NULL, lazy->length, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK_EQ(lr_session_attach(lazy->session, 0, lazy->memory, NULL), LR_OK);
}

/* ---- System calls ---- */

static void system_calls_fail_on_what_is_missing(void)
{
	int ends[2];
	struct lazy lazy;
	uint64_t done;

	CHECK_CALL(pipe(ends));
	lazy_open(&lazy, PAGE, 64 * PAGE, "d");
	CHECK_ERRNO(write(ends[1], lazy.memory, PAGE), EFAULT);
	CHECK_ERRNO(madvise(lazy.memory, PAGE, MADV_POPULATE_READ), EFAULT);
	CHECK_EQ(lr_session_populate(lazy.session, 0, 0, 8 * PAGE, -1, &done, NULL), LR_OK);
	CHECK_EQ(write(ends[1], lazy.memory, 8 * PAGE), 8 * PAGE);
	/* Or touch it. */
	(void)*(volatile uint8_t *)(lazy.memory + 9 * PAGE);
	CHECK_EQ(read(ends[0], lazy.memory + 9 * PAGE, PAGE), PAGE);
	CHECK_MEM(lazy.memory + 9 * PAGE, lazy.expected, PAGE);
	CHECK_EQ(lazy_stats(&lazy).faults, 1);
	lazy_close(&lazy);
}

/* When the fill has brought all, the memory is its owner's like any other: also for system calls.
 */
static void what_was_filled_is_plain_memory(void)
{
	struct toucher touchers[THREADS];
	int ends[2];
	struct lazy lazy;

	CHECK_CALL(pipe(ends));
	lazy_open(&lazy, 65536, 2000 * PAGE, "drzdh");
	attach_own(&lazy);
	start(touchers, &lazy, 1);
	CHECK_EQ(lr_session_fill(lazy.session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(lazy.session, -1), LR_OK);
	join(touchers);
	for (int page = 0; page < 2000; page += 100) {
		CHECK_CALL(madvise(lazy.memory + page * PAGE, PAGE, MADV_DONTNEED));
		CHECK_EQ(write(ends[1], lazy.memory + page * PAGE, PAGE), PAGE);
		CHECK_EQ(read(ends[0], lazy.memory + page * PAGE, PAGE), PAGE);
		CHECK_EQ(lazy.memory[page * PAGE], 0);
	}
	lazy_close(&lazy);
}

static void asks_for_no_right_that_it_cannot_use(void)
{
	struct lr_session_options options = {.fault_mode = LR_FAULT_INLINE + 1};
	struct lazy lazy;
	lr_session *session;

	lazy_open(&lazy, PAGE, PAGE, "d");
	CHECK_EQ(lr_session_open(lazy.opened, &options, &session, NULL), LR_ERR_ARGUMENT);
	lazy_close(&lazy);
}

/* ---- fork() ---- */

#define SHORT_OF_SANITIZERS                                                                        \
	if (CHECK_SANITIZER_FACTOR != 1)                                                           \
	SKIP("a sanitizer allows no new thread in a child of many threads")

static void read_all_in_a_child(const struct lazy *lazy, int generations, bool must_fault)
{
	pid_t pid = fork();

	CHECK(pid != -1);
	if (pid > 0) {
		CHECK_CHILD(pid);
		return;
	}
	for (uint64_t page = (uint64_t)generations; page < 100; page += 7)
		CHECK_EQ(lazy->memory[page * PAGE], lazy->expected[page * PAGE]);
	if (generations > 1)
		read_all_in_a_child(lazy, generations - 1, must_fault);
	CHECK_MEM(lazy->memory, lazy->expected, lazy->length);
	CHECK(lazy_stats(lazy).faults > 0 || !must_fault);
	_exit(0);
}

/* Hands, locks and entries that other threads hold at that moment are nobody's in a child. */
static void children_answer_for_themselves(void)
{
	struct toucher touchers[THREADS];
	struct lazy lazy;

	SHORT_OF_SANITIZERS;
	lazy_open(&lazy, PAGE, 2000 * PAGE, "drzd");
	read_all_in_a_child(&lazy, 3, true);
	start(touchers, &lazy, 1);
	for (int i = 0; i < 12; i++)
		read_all_in_a_child(&lazy, 1, false);
	join(touchers);
	CHECK_MEM(lazy.memory, lazy.expected, lazy.length);
	lazy_close(&lazy);
}

/* ---- The end ---- */

static _Thread_local sigjmp_buf *way_out;

static void leave(int number)
{
	(void)number;
	if (way_out)
		siglongjmp(*way_out, 1);
	_exit(99);
}

static void *touch_until_it_is_fenced(void *argument)
{
	struct lazy *lazy = argument;
	volatile uint64_t page = 0;
	sigjmp_buf here;

	way_out = &here;
	if (sigsetjmp(here, 1) == 0)
		for (;; page = page + 1) {
			uint64_t offset = page * 7 % 4096 * PAGE;

			CHECK_EQ(lazy->memory[offset], lazy->expected[offset]);
			if (page >= 4096)
				break;
		}
	way_out = NULL;
	return NULL;
}

/* What was attached stays, and is fenced; who was on his way to a page finds that. */
static void closes_while_others_touch(void)
{
	struct sigaction action = {.sa_handler = leave, .sa_flags = SA_NODEFER};

	CHECK_CALL(sigaction(SIGBUS, &action, NULL));
	CHECK_CALL(sigaction(SIGSEGV, &action, NULL));
	for (int i = 0; i < 20; i++) {
		pthread_t threads[THREADS];
		struct lazy lazy;

		lazy_open(&lazy, PAGE, 4096 * PAGE, "d");
		if (i % 2)
			attach_own(&lazy);
		for (int j = 0; j < THREADS; j++)
			CHECK_EQ(pthread_create(&threads[j], NULL, touch_until_it_is_fenced, &lazy),
				 0);
		usleep((useconds_t)(i * 300));
		lr_session_close(lazy.session);
		for (int j = 0; j < THREADS; j++)
			CHECK_EQ(pthread_join(threads[j], NULL), 0);
		if (i % 2)
			munmap(lazy.memory, lazy.length);
		lr_image_close(lazy.opened);
		image_fini(&lazy.image);
	}
}

static const struct check_case cases[] = {
	CHECK_CASE(counts_and_traces_what_it_does),
	CHECK_CASE(serves_many_threads_with_a_fill),
	CHECK_CASE(serves_several_sessions_of_both_modes),
	CHECK_CASE(what_is_given_up_never_comes_back),
	CHECK_CASE(follows_what_owners_do),
	CHECK_CASE(system_calls_fail_on_what_is_missing),
	CHECK_CASE(what_was_filled_is_plain_memory),
	CHECK_CASE(asks_for_no_right_that_it_cannot_use),
	CHECK_CASE(children_answer_for_themselves),
	CHECK_CASE(closes_while_others_touch),
};

CHECK_MAIN(cases)
