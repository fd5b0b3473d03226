/* lr_touch: every page once, what it waited, and pages that cannot be read counted, not died of. */
#include "check.h"

#include <lazyrestore.h>
#include <pthread.h>
#include <sys/stat.h>

#define PAGE   4096u
#define PAGES  64u
#define FAILED ((uint32_t)LR_TOUCH_FAILED)

static uint8_t *map_pages(size_t pages)
{
	void *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);

	CHECK(memory != MAP_FAILED);
	/* A huge page would be one fault for all. */
	madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
	return memory;
}

static uint64_t touch_all(const uint8_t *memory, uint32_t order, uint32_t *latency_ns)
{
	return lr_touch(memory, PAGES * PAGE, PAGE, order, 7, 0, PAGES, latency_ns);
}

static void counts_only_what_faulted(void)
{
	uint8_t *memory = map_pages(PAGES);
	uint32_t latency_ns[PAGES];

#ifdef __SANITIZE_THREAD__
	SKIP("ThreadSanitizer's own memory faults now and then, and a touch is taken for one");
#endif
	for (unsigned page = 0; page < PAGES; page += 2)
		memory[page * PAGE] = 1;
	CHECK_EQ(touch_all(memory, LR_TOUCH_SEQUENTIAL, latency_ns), PAGES);
	for (unsigned page = 0; page < PAGES; page++)
		CHECK_EQ(latency_ns[page] > 0, page % 2);
	CHECK_EQ(touch_all(memory, LR_TOUCH_SEQUENTIAL, latency_ns), PAGES);
	for (unsigned page = 0; page < PAGES; page++)
		CHECK_EQ(latency_ns[page], 0);
}

static void stops_at_the_last_page(void)
{
	uint8_t *memory = map_pages(3);
	uint32_t latency_ns[8];

	CHECK_EQ(lr_touch(memory, 2 * PAGE + 1, PAGE, LR_TOUCH_SEQUENTIAL, 0, 1, 8, latency_ns), 2);
	CHECK_EQ(lr_touch(memory, 2 * PAGE, PAGE, LR_TOUCH_SEQUENTIAL, 0, 2, 8, latency_ns), 0);
	CHECK_EQ(lr_touch(memory, 0, PAGE, LR_TOUCH_RANDOM, 0, 0, 8, latency_ns), 0);
}

/* Each page faults at its one touch: had any come twice, another would not have come. */
static void random_is_a_permutation(void)
{
	for (size_t pages = 1; pages < 40; pages += 3) {
		uint8_t *memory = map_pages(pages);
		uint32_t latency_ns[40];
		uint64_t half = pages / 2;

		CHECK_EQ(lr_touch(memory, pages * PAGE, PAGE, LR_TOUCH_RANDOM, pages, 0, half,
				  latency_ns),
			 half);
		CHECK_EQ(lr_touch(memory, pages * PAGE, PAGE, LR_TOUCH_RANDOM, pages, half, pages,
				  latency_ns + half),
			 pages - half);
		for (size_t i = 0; i < pages; i++)
			CHECK(latency_ns[i] > 0 && latency_ns[i] != FAILED);
		munmap(memory, pages * PAGE);
	}
}

static void random_is_not_sequential(void)
{
	uint8_t *memory = map_pages(PAGES);
	uint32_t latency_ns[PAGES];
	unsigned failed = 0;

	CHECK_CALL(mprotect(memory, PAGES / 2 * PAGE, PROT_NONE));
	CHECK_EQ(lr_touch(memory, PAGES * PAGE, PAGE, LR_TOUCH_RANDOM, 1, 0, PAGES / 2, latency_ns),
		 PAGES / 2);
	for (unsigned i = 0; i < PAGES / 2; i++)
		failed += latency_ns[i] == FAILED;
	CHECK(failed > 0 && failed < PAGES / 2);
}

static void counts_segv(void)
{
	uint8_t *memory = map_pages(PAGES);
	uint32_t latency_ns[PAGES];

	/* The first, the last and two neighbours. */
	CHECK_CALL(mprotect(memory, PAGE, PROT_NONE));
	CHECK_CALL(mprotect(memory + 9 * PAGE, 2 * PAGE, PROT_NONE));
	CHECK_CALL(mprotect(memory + (PAGES - 1) * PAGE, PAGE, PROT_NONE));
	CHECK_EQ(touch_all(memory, LR_TOUCH_SEQUENTIAL, latency_ns), PAGES);
	for (unsigned page = 0; page < PAGES; page++)
		CHECK_EQ(latency_ns[page] == FAILED,
			 page == 0 || page == 9 || page == 10 || page == PAGES - 1);
}

/* A page behind the end of a mapped file raises SIGBUS, as a fence does. */
static void counts_bus(void)
{
	FILE *file = tmpfile();
	uint32_t latency_ns[4];
	uint8_t *memory;

	CHECK(file);
	CHECK_CALL(ftruncate(fileno(file), 2 * PAGE));
	memory = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, fileno(file), 0);
	CHECK(memory != MAP_FAILED);
	/* From the middle of a page: the signal may name the page only. */
	CHECK_EQ(lr_touch(memory + 100, 4 * PAGE - 100, PAGE, LR_TOUCH_SEQUENTIAL, 0, 0, 4,
			  latency_ns),
		 4);
	for (unsigned page = 0; page < 4; page++)
		CHECK_EQ(latency_ns[page] == FAILED, page >= 2);
}

static void without_room_it_is_died_of(void)
{
	uint8_t *memory = map_pages(PAGES);

	CHECK_EQ(touch_all(memory, LR_TOUCH_SEQUENTIAL, NULL), PAGES);
	CHECK_CALL(mprotect(memory, PAGE, PROT_NONE));
	CHECK_SIGNAL(SIGSEGV, touch_all(memory, LR_TOUCH_SEQUENTIAL, NULL););
}

static atomic_int caught;
static sigjmp_buf way_out;

static void catch_one(int number)
{
	atomic_store(&caught, number);
	siglongjmp(way_out, 1);
}

static void puts_the_handlers_back(void)
{
	struct sigaction ours = {.sa_handler = catch_one}, now;
	uint8_t *memory = map_pages(PAGES);
	uint32_t latency_ns[PAGES];

	CHECK_CALL(sigaction(SIGSEGV, &ours, NULL));
	CHECK_CALL(mprotect(memory, PAGE, PROT_NONE));
	CHECK_EQ(touch_all(memory, LR_TOUCH_SEQUENTIAL, latency_ns), PAGES);
	CHECK_EQ(atomic_load(&caught), 0);
	CHECK_CALL(sigaction(SIGSEGV, NULL, &now));
	CHECK(now.sa_handler == catch_one);
	if (sigsetjmp(way_out, 1) == 0)
		(void)*(volatile uint8_t *)memory;
	CHECK_EQ(atomic_load(&caught), SIGSEGV);
}

static atomic_int stop_touching;

static void *touch_until_stopped(void *argument)
{
	uint8_t *memory = argument;
	uint32_t latency_ns[PAGES];

	do {
		CHECK_EQ(touch_all(memory, LR_TOUCH_SEQUENTIAL, latency_ns), PAGES);
		CHECK_EQ(latency_ns[0], FAILED);
	} while (!atomic_load(&stop_touching));
	return NULL;
}

static _Thread_local sigjmp_buf own_way_out;
static atomic_int own_caught;

static void catch_own(int number)
{
	(void)number;
	atomic_fetch_add(&own_caught, 1);
	siglongjmp(own_way_out, 1);
}

/* While other threads touch, faults of this one go to the handler that was there. */
static void others_keep_their_handler(void)
{
	struct sigaction ours = {.sa_handler = catch_own, .sa_flags = SA_NODEFER};
	uint8_t *memory = map_pages(PAGES), *forbidden = map_pages(1);
	pthread_t threads[2];

	CHECK_CALL(mprotect(memory, PAGE, PROT_NONE));
	CHECK_CALL(mprotect(forbidden, PAGE, PROT_NONE));
	CHECK_CALL(sigaction(SIGSEGV, &ours, NULL));
	for (unsigned i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, touch_until_stopped, memory), 0);
	for (volatile int round = 0; round < 20000; round = round + 1)
		/* With the mask: ThreadSanitizer blocks all signals around a handler. */
		if (sigsetjmp(own_way_out, 1) == 0) {
			(void)*(volatile uint8_t *)forbidden;
			CHECK_FAIL("no signal");
		}
	atomic_store(&stop_touching, 1);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQ(atomic_load(&own_caught), 20000);
}

static void others_still_die(void)
{
	uint8_t *memory = map_pages(PAGES), *forbidden = map_pages(1);

	CHECK_CALL(mprotect(memory, PAGE, PROT_NONE));
	CHECK_CALL(mprotect(forbidden, PAGE, PROT_NONE));
	CHECK_SIGNAL(SIGSEGV, {
		pthread_t thread;

		CHECK_EQ(pthread_create(&thread, NULL, touch_until_stopped, memory), 0);
		usleep(20000);
		for (;;)
			(void)*(volatile uint8_t *)forbidden;
	});
	/* And of a signal that is sent, not raised by a fault. */
	CHECK_SIGNAL(SIGSEGV, {
		pthread_t thread;

		CHECK_EQ(pthread_create(&thread, NULL, touch_until_stopped, memory), 0);
		usleep(20000);
		kill(getpid(), SIGSEGV);
		pause();
	});
}

static const struct check_case cases[] = {
	CHECK_CASE(counts_only_what_faulted),
	CHECK_CASE(stops_at_the_last_page),
	CHECK_CASE(random_is_a_permutation),
	CHECK_CASE(random_is_not_sequential),
	CHECK_CASE(counts_segv),
	CHECK_CASE(counts_bus),
	CHECK_CASE(without_room_it_is_died_of),
	CHECK_CASE(puts_the_handlers_back),
	CHECK_CASE(others_keep_their_handler),
	CHECK_CASE(others_still_die),
};

CHECK_MAIN(cases)
