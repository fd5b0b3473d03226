/* Sessions: attaching, suspending, detaching, populating and closing, against threads that touch.
 */
#include "check.h"

#include <pthread.h>
#include <sched.h>

#include "format.h"
#include "image_builder.h"
#include "uffd.h"

struct setting {
	struct image image;
	lr_image *opened;
	lr_session *session;
};

static lr_session *open_session(const lr_image *image, const struct lr_session_options *options)
{
	struct lr_session_options any = {.privilege = LR_PRIVILEGE_AUTO};
	struct lr_problem problem;
	lr_session *session;
	int code = lr_session_open(image, options ? options : &any, &session, &problem);

	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(code, LR_OK);
	return session;
}

static void set_up(struct setting *set, const struct lr_session_options *options)
{
	image_publish(&set->image);
	CHECK_EQ(lr_image_open(set->image.path, &set->opened, NULL), LR_OK);
	set->session = open_session(set->opened, options);
}

static void set_up_image(struct setting *set, uint64_t length, const char *pattern)
{
	memset(set, 0, sizeof(*set));
	image_init(&set->image, 4096, 65536);
	image_add(&set->image, "memory", length, pattern);
	image_build(&set->image);
	set_up(set, NULL);
}

static void tear_down(struct setting *set)
{
	lr_session_close(set->session);
	lr_image_close(set->opened);
	image_fini(&set->image);
}

static uint8_t *map(struct setting *set, uint32_t region)
{
	void *memory = NULL;

	CHECK_EQ(lr_session_map(set->session, region, &memory, NULL), LR_OK);
	return memory;
}

static uint8_t *own_memory(uint64_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

static void map_over(uint8_t *memory, uint64_t bytes)
{
	CHECK(mmap(memory, bytes, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
	      == memory);
}

/* The literal promise: what is touched comes, and is counted as what it is. */
static void counts_what_it_does(void)
{
	struct setting set = {0};
	struct lr_session_stats stats;
	uint8_t *memory;

	image_make(&set.image, 4096, 4096, 4096 * 100, "dz");
	set_up(&set, NULL);
	memory = map(&set, 0);
	for (int page = 10; page < 20; page++)
		CHECK_EQ(memory[page * 4096], set.image.regions[0].bytes[page * 4096]);
	memory[21 * 4096] = 1;
	lr_session_get_stats(set.session, &stats);
	CHECK_EQ(stats.faults, 11);
	CHECK_EQ(stats.pages_copied, 5);
	CHECK_EQ(stats.pages_zeroed, 6);
	CHECK_EQ(stats.service.count, 11);
	CHECK_EQ(stats.answers[0][LR_ACTION_COPY], 5);
	CHECK_EQ(stats.answers[0][LR_ACTION_ZEROPAGE], 5);
	CHECK_EQ(stats.answers[1][LR_ACTION_COPY], 0);
	CHECK_EQ(stats.answers[1][LR_ACTION_ZEROPAGE], 1);
	CHECK_EQ(stats.errors, 0);
	CHECK_EQ(stats.regions_attached, 1);
	tear_down(&set);
}

/* By the page: no more memory than was touched, and the neighbours are as good. */
static void brings_single_pages(void)
{
	struct lr_session_options options = {
		.privilege = LR_PRIVILEGE_AUTO,
		.granularity = LR_GRANULARITY_PAGE,
	};
	struct lr_session_stats stats;
	struct setting set = {0};
	uint8_t *memory;
	uint64_t done;

	image_make(&set.image, 4096, 65536, 4096 * 100 - 10, "dzzd");
	set_up(&set, &options);
	memory = map(&set, 0);
	for (uint32_t page = 0; page < 100; page += 4)
		CHECK_EQ(memory[page * 4096], set.image.regions[0].bytes[page * 4096]);
	lr_session_get_stats(set.session, &stats);
	CHECK_EQ(stats.pages_copied, 25);
	CHECK_EQ(stats.pages_zeroed, 0);
	/* The cluster that was decoded last is not decoded for each of its pages. */
	CHECK_EQ(stats.clusters_decoded, 7);
	CHECK_EQ(lr_session_populate(set.session, 0, 0, 8192, -1, &done, NULL), LR_OK);
	CHECK_MEM(memory, set.image.regions[0].bytes, 4096 * 100 - 10);
	lr_session_get_stats(set.session, &stats);
	CHECK_EQ(stats.pages_copied, 50);
	CHECK_EQ(stats.pages_zeroed, 50);
	tear_down(&set);
}

#define THREADS 8

struct toucher {
	pthread_t thread;
	const uint8_t *memory;
	const uint8_t *expected;
	uint64_t length;
	uint64_t seed;
	uint64_t wrong;
};

static void *touch_at_random(void *argument)
{
	struct toucher *toucher = argument;

	for (int i = 0; i < 3000; i++) {
		uint64_t offset = image_random(&toucher->seed) % toucher->length;

		toucher->wrong += toucher->memory[offset] != toucher->expected[offset];
	}
	return NULL;
}

static void start(struct toucher *touchers, const struct setting *set, const uint8_t *memory)
{
	for (unsigned i = 0; i < THREADS; i++) {
		touchers[i] = (struct toucher){.memory = memory,
					       .expected = set->image.regions[0].bytes,
					       .length = set->image.regions[0].length,
					       .seed = i};
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

/* Threads that touch, one that populates, one that suspends and resumes: all bytes right, no hang.
 */
static void serves_many_threads_at_once(void)
{
	struct toucher touchers[THREADS];
	struct setting set;
	struct lr_session_stats stats;
	uint64_t done = 0;
	uint8_t *memory;

	set_up_image(&set, 8000000, "drzhhdddr");
	memory = map(&set, 0);
	start(touchers, &set, memory);
	for (int i = 0; i < 200; i++) {
		CHECK_EQ(lr_session_suspend(set.session, 0), LR_OK);
		sched_yield();
		CHECK_EQ(lr_session_resume(set.session, 0), LR_OK);
		lr_session_get_stats(set.session, &stats);
		if (i == 100)
			CHECK_EQ(lr_session_populate(set.session, 0, 4000000, 2000000, -1, &done,
						     NULL),
				 LR_OK);
	}
	join(touchers);
	CHECK_EQ(done, 2000000);
	CHECK_MEM(memory, set.image.regions[0].bytes, 8000000);
	tear_down(&set);
}

static void populates(void)
{
	struct setting set;
	struct lr_problem problem;
	struct lr_session_stats stats;
	uint64_t done;
	uint8_t *memory;

	set_up_image(&set, 3000001, "drzh");
	CHECK_EQ(lr_session_populate(set.session, 0, 0, 1, -1, &done, &problem), LR_ERR_CLOSED);
	memory = map(&set, 0);
	CHECK_EQ(lr_session_populate(set.session, 0, 3000000, 2, -1, &done, &problem),
		 LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_populate(set.session, 0, UINT64_MAX, 2, -1, &done, &problem),
		 LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_populate(set.session, 1, 0, 0, -1, &done, &problem), LR_ERR_NOT_FOUND);
	CHECK_EQ(lr_session_populate(set.session, 0, 3000001, 0, -1, &done, &problem), LR_OK);
	CHECK_EQ(done, 0);
	/* No time: at least one cluster at each call, and it says how far it came. */
	CHECK_EQ(lr_session_populate(set.session, 0, 100, 2999901, 0, &done, &problem),
		 LR_ERR_TIMEOUT);
	CHECK_EQ(done, 65436);
	CHECK_EQ(lr_session_populate(set.session, 0, 0, 3000001, -1, &done, &problem), LR_OK);
	CHECK_EQ(done, 3000001);
	CHECK_MEM(memory, set.image.regions[0].bytes, 3000001);
	lr_session_get_stats(set.session, &stats);
	CHECK_EQ(stats.faults, 0);
	CHECK_EQ(stats.pages_copied + stats.pages_zeroed, 733);
	tear_down(&set);
}

static void attaches_once_and_where_it_can(void)
{
	struct setting set, other;
	struct lr_problem problem;
	uint8_t *memory = own_memory(1 << 20);
	void *again;

	memset(&set, 0, sizeof(set));
	image_init(&set.image, 4096, 65536);
	image_add(&set.image, "a", 100000, "d");
	image_add(&set.image, "b", 100000, "r");
	image_add(&set.image, "empty", 0, "d");
	image_build(&set.image);
	set_up(&set, NULL);
	set_up_image(&other, 200000, "d");
	CHECK_EQ(lr_session_attach(set.session, 3, memory, &problem), LR_ERR_NOT_FOUND);
	CHECK_EQ(lr_session_attach(set.session, 0, memory + 1, &problem), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_attach(set.session, 0, NULL, &problem), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_attach(set.session, 2, memory, &problem), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_map(set.session, 2, &again, &problem), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_attach(set.session, 0, memory + 65536, &problem), LR_OK);
	CHECK_EQ(memory[65536], set.image.regions[0].bytes[0]);
	memory[65536] = 77;
	CHECK_EQ(lr_session_attach(set.session, 0, memory, &problem), LR_ERR_BUSY);
	CHECK_EQ(lr_session_map(set.session, 0, &again, &problem), LR_ERR_BUSY);
	/* Over a range of its own: what was written there must stay. */
	CHECK_EQ(lr_session_attach(set.session, 1, memory, &problem), LR_ERR_BUSY);
	CHECK_EQ(lr_session_attach(set.session, 1, memory + 65536, &problem), LR_ERR_BUSY);
	CHECK_EQ(memory[65536], 77);
	/* Over a range of another session: it must go on being served, not read as zeros. */
	CHECK_EQ(lr_session_attach(other.session, 0, memory, &problem), LR_ERR_BUSY);
	CHECK_EQ(memory[65536], 77);
	CHECK_MEM(memory + 65536 + 1, set.image.regions[0].bytes + 1, 99999);
	CHECK_EQ(lr_session_attach(set.session, 1, memory + 65536 + 102400, &problem), LR_OK);
	CHECK_MEM(memory + 65536 + 102400, set.image.regions[1].bytes, 100000);
	CHECK_EQ(lr_session_attach(other.session, 0, (void *)(uintptr_t)4096, &problem),
		 LR_ERR_SYSTEM);
	tear_down(&other);
	tear_down(&set);
	munmap(memory, 1 << 20);
}

/* Pages that are there before the first fault would stay, as zeros. */
static void drops_pages_that_were_there(void)
{
	struct setting set;
	uint8_t *memory = own_memory(1 << 20);

	set_up_image(&set, 1 << 20, "d");
	memset(memory, 99, 1 << 20);
	CHECK_EQ(mlock(memory, 65536), 0);
	CHECK_EQ(lr_session_attach(set.session, 0, memory, NULL), LR_OK);
	CHECK_MEM(memory, set.image.regions[0].bytes, 1 << 20);
	tear_down(&set);
}

static void *touch_first(void *argument)
{
	return (void *)(uintptr_t)*(volatile uint8_t *)argument;
}

/* A touch of a suspended region waits until it is resumed. */
static void suspends_and_resumes(void)
{
	struct setting set;
	struct lr_session_stats stats;
	pthread_t thread;
	uint8_t *memory;
	void *value;

	set_up_image(&set, 100000, "d");
	memory = map(&set, 0);
	CHECK_EQ(lr_session_resume(set.session, 0), LR_ERR_CLOSED);
	CHECK_EQ(lr_session_suspend(set.session, 0), LR_OK);
	CHECK_EQ(lr_session_suspend(set.session, 0), LR_ERR_CLOSED);
	CHECK_EQ(pthread_create(&thread, NULL, touch_first, memory), 0);
	usleep(50000);
	lr_session_get_stats(set.session, &stats);
	CHECK_EQ(stats.pages_copied, 0);
	CHECK_EQ(pthread_tryjoin_np(thread, NULL), EBUSY);
	CHECK_EQ(lr_session_resume(set.session, 0), LR_OK);
	CHECK_EQ(pthread_join(thread, &value), 0);
	CHECK_EQ((uintptr_t)value, set.image.regions[0].bytes[0]);
	tear_down(&set);
}

struct jumper {
	volatile uint8_t *at;
	int raised;
};

static void *touch_and_catch(void *argument)
{
	struct jumper *jumper = argument;

	jumper->raised = check_touch(jumper->at, 0);
	return NULL;
}

/* The memory goes away under a thread that waits for it: it gets SIGSEGV, not a wait for good. */
static void wakes_waiters_of_unmapped_memory(void)
{
	struct setting set;
	uint8_t *memory = own_memory(1 << 20);
	struct jumper jumper = {.at = memory + 50000};
	pthread_t thread;

	set_up_image(&set, 100000, "d");
	CHECK_EQ(lr_session_attach(set.session, 0, memory, NULL), LR_OK);
	CHECK_EQ(lr_session_suspend(set.session, 0), LR_OK);
	CHECK_EQ(pthread_create(&thread, NULL, touch_and_catch, &jumper), 0);
	usleep(50000);
	CHECK_CALL(munmap(memory, 1 << 20));
	CHECK_EQ(lr_session_detach(set.session, 0), LR_OK);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(jumper.raised, SIGSEGV);
	CHECK_EQ(lr_session_detach(set.session, 0), LR_ERR_CLOSED);
	CHECK_EQ(lr_session_resume(set.session, 0), LR_ERR_CLOSED);
	tear_down(&set);
}

/* An address used again by another session: no byte of the first arrives there. */
static void no_late_copy_after_detach(void)
{
	struct setting first, second;
	uint8_t *memory = own_memory(4 << 20);
	struct toucher touchers[THREADS];

	set_up_image(&second, 4 << 20, "zr");
	for (int round = 0; round < 5; round++) {
		uint64_t done;
		lr_session *session;

		set_up_image(&first, 4 << 20, "r");
		CHECK_EQ(lr_session_attach(first.session, 0, memory, NULL), LR_OK);
		start(touchers, &first, memory);
		CHECK_EQ(lr_session_populate(first.session, 0, 1 << 20, 1 << 20, -1, &done, NULL),
			 LR_OK);
		join(touchers);
		CHECK_EQ(lr_session_suspend(first.session, 0), LR_OK);
		/* In one call: between two another thread might get the place. */
		map_over(memory, 4 << 20);
		session = open_session(second.opened, NULL);
		CHECK_EQ(lr_session_attach(session, 0, memory, NULL), LR_OK);
		CHECK_EQ(lr_session_detach(first.session, 0), LR_OK);
		CHECK_MEM(memory, second.image.regions[0].bytes, 4 << 20);
		CHECK_EQ(lr_session_suspend(session, 0), LR_OK);
		map_over(memory, 4 << 20);
		CHECK_EQ(lr_session_detach(session, 0), LR_OK);
		lr_session_close(session);
		tear_down(&first);
	}
	tear_down(&second);
}

/* Memory of the caller's stays after close: what came stays, what is missing is fenced, not zero.
 */
static void close_fences_what_stays(void)
{
	struct setting set;
	uint8_t *memory = own_memory(1 << 20);
	struct jumper jumper = {.at = memory + 700000};
	pthread_t thread;
	uint64_t done;

	set_up_image(&set, 1 << 20, "dz");
	CHECK_EQ(lr_session_attach(set.session, 0, memory, NULL), LR_OK);
	CHECK_EQ(lr_session_populate(set.session, 0, 0, 65536, -1, &done, NULL), LR_OK);
	/* An error of the file, so that a waiter is on the way when the session ends. */
	CHECK_EQ(pthread_create(&thread, NULL, touch_and_catch, &jumper), 0);
	lr_session_close(set.session);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK(jumper.raised == 0 || jumper.raised == SIGBUS || jumper.raised == SIGSEGV);
	CHECK_MEM(memory, set.image.regions[0].bytes, 65536);
	for (uint64_t offset = 65536; offset < 655360; offset += 4096)
		CHECK_NE(check_touch(memory + offset, 0), 0);
	lr_image_close(set.opened);
	image_fini(&set.image);
	munmap(memory, 1 << 20);
}

/* Closing a session of many regions while threads touch them: nobody hangs, nobody reads a zero. */
static void *touch_until_signal(void *argument)
{
	struct toucher *toucher = argument;

	for (uint64_t offset = 0; offset < toucher->length; offset += 4096)
		toucher->wrong += toucher->memory[offset] != toucher->expected[offset];
	pause();
	return NULL;
}

static void closes_under_touching_threads(void)
{
	for (int round = 0; round < 20; round++) {
		pid_t pid = check_fork(SIGSEGV);

		if (pid == 0) {
			static struct toucher toucher;
			struct setting set;

			set_up_image(&set, 4 << 20, "r");
			toucher.memory = map(&set, 0);
			toucher.expected = set.image.regions[0].bytes;
			toucher.length = 4 << 20;
			CHECK_EQ(
				pthread_create(&toucher.thread, NULL, touch_until_signal, &toucher),
				0);
			usleep((useconds_t)round * 100);
			lr_session_close(set.session);
			usleep(2000);
			CHECK_EQ(toucher.wrong, 0);
			_exit(0);
		}
		int status = check_wait(pid);

		CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV)
		      || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
	}
}

/* Results may be asked for into memory that is lazy itself. */
static void tells_into_lazy_memory(void)
{
	struct setting set;
	struct lr_session_stats *stats;
	struct lr_load_error *errors;
	uint8_t *memory, *damaged;

	memset(&set, 0, sizeof(set));
	image_init(&set.image, 4096, 4096);
	image_add(&set.image, "a", 100000, "d");
	image_add(&set.image, "damaged", 4096, "r");
	image_build(&set.image);
	set.image.file[image_get(set.image.file + image_entry_offset(&set.image, 25), 8)] ^= 1;
	set_up(&set, NULL);
	memory = map(&set, 0);
	damaged = map(&set, 1);
	CHECK_NE(check_touch(damaged, 0), 0);
	stats = (void *)memory;
	lr_session_get_stats(set.session, stats);
	CHECK_EQ(stats->regions_attached, 2);
	CHECK_EQ(stats->errors, 1);
	errors = (void *)(memory + 40960);
	CHECK_EQ(lr_session_get_errors(set.session, 0, errors, 5), 1);
	CHECK_EQ(errors[0].code, LR_ERR_CHECKSUM);
	CHECK_EQ(errors[0].region, 1);
	CHECK_EQ(lr_session_get_errors(set.session, 1, errors, 5), 0);
	CHECK_EQ(lr_session_get_errors(set.session, UINT64_MAX, errors, 5), 0);
	tear_down(&set);
}

struct racer {
	pthread_t thread;
	lr_session *session;
	uint8_t *memory;
	int code;
};

static void *attach_it(void *argument)
{
	struct racer *racer = argument;

	racer->code = lr_session_attach(racer->session, 0, racer->memory, NULL);
	return NULL;
}

static void *detach_it(void *argument)
{
	struct racer *racer = argument;

	racer->code = lr_session_detach(racer->session, 0);
	return NULL;
}

/* One of two threads attaches a region, one of two detaches it: the other is told. */
static void attaches_and_detaches_once_of_two_threads(void)
{
	for (int round = 0; round < 200; round++) {
		struct racer racers[2] = {0};
		struct setting set;

		set_up_image(&set, 100000, "d");
		for (int i = 0; i < 2; i++) {
			racers[i].session = set.session;
			racers[i].memory = own_memory(102400);
			CHECK_EQ(pthread_create(&racers[i].thread, NULL, attach_it, &racers[i]), 0);
		}
		for (int i = 0; i < 2; i++)
			CHECK_EQ(pthread_join(racers[i].thread, NULL), 0);
		CHECK_EQ(racers[0].code + racers[1].code, LR_ERR_BUSY);
		uint8_t *memory = racers[racers[0].code ? 1 : 0].memory;

		CHECK_EQ(memory[5], set.image.regions[0].bytes[5]);
		for (int i = 0; i < 2; i++)
			CHECK_EQ(pthread_create(&racers[i].thread, NULL, detach_it, &racers[i]), 0);
		for (int i = 0; i < 2; i++)
			CHECK_EQ(pthread_join(racers[i].thread, NULL), 0);
		CHECK_EQ(racers[0].code + racers[1].code, LR_ERR_CLOSED);
		for (int i = 0; i < 2; i++)
			munmap(racers[i].memory, 102400);
		tear_down(&set);
	}
}

/* A region that was detached but left mapped: who touches it gets a signal, no zeros and no wait.
 */
static void a_detached_region_cannot_be_touched(void)
{
	struct setting set;
	uint8_t *memory = own_memory(102400);
	struct jumper jumper = {.at = memory + 8192};
	pthread_t thread;

	set_up_image(&set, 100000, "d");
	CHECK_EQ(lr_session_attach(set.session, 0, memory, NULL), LR_OK);
	CHECK_EQ(lr_session_detach(set.session, 0), LR_OK);
	CHECK_EQ(pthread_create(&thread, NULL, touch_and_catch, &jumper), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK(jumper.raised == SIGBUS || jumper.raised == SIGSEGV);
	tear_down(&set);
}

static const struct check_case cases[] = {
	CHECK_CASE(counts_what_it_does),
	CHECK_CASE(brings_single_pages),
	CHECK_CASE(serves_many_threads_at_once),
	CHECK_CASE(populates),
	CHECK_CASE(attaches_once_and_where_it_can),
	CHECK_CASE(drops_pages_that_were_there),
	CHECK_CASE(suspends_and_resumes),
	CHECK_CASE(wakes_waiters_of_unmapped_memory),
	CHECK_CASE(no_late_copy_after_detach),
	CHECK_CASE(close_fences_what_stays),
	CHECK_CASE(closes_under_touching_threads),
	CHECK_CASE(tells_into_lazy_memory),
	CHECK_CASE(attaches_and_detaches_once_of_two_threads),
	CHECK_CASE(a_detached_region_cannot_be_touched),
};
CHECK_MAIN(cases)
