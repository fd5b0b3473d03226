/* The thread that serves on the toucher's processor: that it gets the turn, and that nobody waits
 * for it where it cannot work. */
#include "check.h"

#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>

#include "image_builder.h"
#include "session.h"

#define PAGES 8000u

struct setting {
	struct image image;
	lr_image *opened;
	lr_session *session;
	const uint8_t *memory;
	uint32_t next; /* page that was not touched yet */
};

static unsigned processors(void)
{
	cpu_set_t allowed;

	CHECK_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
	return (unsigned)CPU_COUNT(&allowed);
}

static void set_up(struct setting *set)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	struct lr_problem problem;
	void *memory;
	int code;

	if (processors() < 2)
		SKIP("one processor: there is nothing to be near to");
	memset(set, 0, sizeof(*set));
	image_make(&set->image, 4096, 4096, 4096ull * PAGES, "ddz");
	CHECK_EQ(lr_image_open(set->image.path, &set->opened, NULL), LR_OK);
	code = lr_session_open(set->opened, &options, &set->session, &problem);
	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(code, LR_OK);
	CHECK_EQ(lr_session_map(set->session, 0, &memory, NULL), LR_OK);
	set->memory = memory;
	set->session->pager.near.ignores_load = true;
}

static void tear_down(struct setting *set)
{
	lr_session_close(set->session);
	lr_image_close(set->opened);
	image_fini(&set->image);
}

static uint32_t rounds(const struct setting *set)
{
	return atomic_load(&set->session->pager.near.rounds);
}

static bool is_unfit(const struct setting *set)
{
	return atomic_load(&set->session->pager.near.is_unfit);
}

static void touch(struct setting *set, uint32_t count)
{
	for (uint32_t i = 0; i < count && set->next < PAGES; i++, set->next++)
		CHECK_MEM(set->memory + 4096ull * set->next,
			  set->image.regions[0].bytes + 4096ull * set->next, 4096);
}

static bool is_machine_busy(void)
{
	for (int i = 0; i < 10; i++) {
		FILE *file = fopen("/proc/loadavg", "re");
		unsigned running = 0;

		CHECK(file);
		CHECK_EQ(fscanf(file, "%*f %*f %*f %u/", &running), 1);
		fclose(file);
		if (running > processors())
			return true;
		usleep(10000);
	}
	return false;
}

/* Touch until it serves. It may have had too little of a processor a moment ago, and is left out
 * for a while then: of the pages a third may go for that, each time. */
static void have_it_serve(struct setting *set)
{
	uint32_t before = rounds(set), left = (PAGES - set->next) / 3;
	bool was_busy = false;

	for (uint32_t tries = 0; rounds(set) == before && tries < left / 20; tries++) {
		touch(set, 20);
		if (rounds(set) > before)
			return;
		if (is_unfit(set))
			SKIP("this thread may not choose its scheduling class");
		if (tries > 2)
			was_busy |= is_machine_busy();
	}
	if (rounds(set) == before && was_busy)
		SKIP("others keep each processor busy");
	CHECK(rounds(set) > before);
}

static void serves_who_faults_again_and_again(void)
{
	struct setting set;
	struct lr_session_stats stats;

	set_up(&set);
	touch(&set, 4);
	CHECK_EQ(rounds(&set), 0);
	have_it_serve(&set);
	touch(&set, 500);
	lr_session_get_stats(set.session, &stats);
	CHECK_EQ(stats.faults, set.next);
	CHECK_EQ(stats.pages_copied + stats.pages_zeroed, set.next);
	tear_down(&set);
}

static void gives_the_turn_back_when_nobody_faults(void)
{
	struct setting set;
	struct lr_near *near;

	set_up(&set);
	have_it_serve(&set);
	near = &set.session->pager.near;
	while (atomic_load(&near->turn) != LR_NEAR_AWAY)
		usleep(1000);
	/* And takes it again. */
	have_it_serve(&set);
	tear_down(&set);
}

static void gives_way_to_loads_ahead(void)
{
	struct setting set;
	uint64_t done;

	set_up(&set);
	have_it_serve(&set);
	CHECK_EQ(lr_session_populate(set.session, 0, 4096ull * set.next,
				     4096ull * (PAGES - set.next), -1, &done, NULL),
		 LR_OK);
	touch(&set, PAGES);
	tear_down(&set);
}

/* Those who load an awaited working set install it themselves, also while this one serves: whom
 * they wake, and when, is not for its thread to say. */
static void serves_beside_those_who_install(void)
{
	uint64_t first[PAGES];

	for (int i = 0; i < 5; i++) {
		struct lr_fill_options options = {.is_awaited = 1, .first_only = 1};
		struct setting set;
		uint32_t begin;

		set_up(&set);
		have_it_serve(&set);
		begin = set.next + (PAGES - set.next) / 2;
		for (uint32_t page = begin; page < PAGES; page++)
			first[options.first_count++] = page;
		options.first = first;
		CHECK_EQ(lr_session_fill(set.session, &options), LR_OK);
		touch(&set, PAGES);
		CHECK_EQ(lr_session_wait_first(set.session, 20000000000), LR_OK);
		tear_down(&set);
	}
}

static void closes_while_it_has_the_turn(void)
{
	for (int i = 0; i < 20; i++) {
		struct setting set;

		set_up(&set);
		have_it_serve(&set);
		tear_down(&set);
	}
}

static void children_go_on_alone(void)
{
	struct setting set;
	int status;

	if (CHECK_SANITIZER_FACTOR != 1)
		SKIP("a sanitizer allows no new thread in a child of many threads");
	set_up(&set);
	for (int i = 0; i < 10; i++) {
		pid_t child;

		have_it_serve(&set);
		child = fork();
		CHECK(child >= 0);
		if (child == 0) {
			touch(&set, 300);
			_exit(0);
		}
		touch(&set, 20);
		CHECK_EQ(waitpid(child, &status, 0), child);
		CHECK_EQ(status, 0);
	}
	tear_down(&set);
}

static _Atomic bool is_over;

/* Threads that keep a processor each: theirs is not the scheduler's choice, which may leave the
 * toucher's processor to him for a while. */
struct hog {
	pthread_t thread;
	int processor;
	_Atomic bool is_on;
};

static void *hold_processor(void *argument)
{
	struct hog *hog = argument;
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((size_t)hog->processor, &one);
	CHECK_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
	atomic_store(&hog->is_on, true);
	while (!atomic_load_explicit(&is_over, memory_order_relaxed))
		continue;
	return NULL;
}

/* Three for each processor that this process may use. */
static struct hog *start_hogs(unsigned *ret_count)
{
	struct hog *hogs = calloc(3 * processors(), sizeof(*hogs));
	unsigned count = 0;
	cpu_set_t allowed;

	CHECK(hogs);
	CHECK_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
	for (int i = 0; i < CPU_SETSIZE; i++)
		for (int j = 0; CPU_ISSET((size_t)i, &allowed) && j < 3; j++, count++) {
			hogs[count].processor = i;
			CHECK_EQ(pthread_create(&hogs[count].thread, NULL, hold_processor,
						&hogs[count]),
				 0);
		}
	for (unsigned i = 0; i < count; i++)
		while (!atomic_load(&hogs[i].is_on))
			usleep(1000);
	*ret_count = count;
	return hogs;
}

/* On processors that others want it gets next to nothing: touches must soon not wait for it. */
static void is_relieved_where_it_gets_no_time(void)
{
	uint32_t before, by_it = UINT32_MAX;
	struct setting set;
	struct hog *hogs;
	unsigned count;

	set_up(&set);
	have_it_serve(&set);
	atomic_store(&is_over, false);
	hogs = start_hogs(&count);
	while (by_it > 25 && set.next + 50 <= PAGES) {
		before = rounds(&set);
		touch(&set, 50);
		by_it = rounds(&set) - before;
	}
	CHECK(by_it <= 25);
	atomic_store(&is_over, true);
	for (unsigned i = 0; i < count; i++)
		pthread_join(hogs[i].thread, NULL);
	tear_down(&set);
	free(hogs);
}

static void *touch_part(void *argument)
{
	struct setting *part = argument;

	touch(part, 200);
	return NULL;
}

static void serves_others_too(void)
{
	struct setting set, parts[8];
	pthread_t threads[8];

	set_up(&set);
	have_it_serve(&set);
	/* Two threads each for the same pages. */
	for (uint32_t i = 0; i < 8; i++) {
		parts[i] = set;
		parts[i].next = PAGES / 2 + i / 2 * 200;
		CHECK_EQ(pthread_create(&threads[i], NULL, touch_part, &parts[i]), 0);
	}
	touch(&set, 1000);
	for (uint32_t i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	tear_down(&set);
}

#if defined(__x86_64__)
#include <sys/user.h>

/* Stop a thread of another process where it is about to wake somebody, and hold it there. */
static void hold_at_wake(pid_t thread, int tell)
{
	struct user_regs_struct now;
	int status;

	if (ptrace(PTRACE_SEIZE, thread, NULL, PTRACE_O_TRACESYSGOOD) < 0
	    || ptrace(PTRACE_INTERRUPT, thread, NULL, NULL) < 0
	    || waitpid(thread, &status, __WALL) < 0)
		_exit(77);
	do {
		if (ptrace(PTRACE_SYSCALL, thread, NULL, NULL) < 0
		    || waitpid(thread, &status, __WALL) < 0
		    || ptrace(PTRACE_GETREGS, thread, NULL, &now) < 0)
			_exit(1);
	} while (WSTOPSIG(status) != (SIGTRAP | 0x80) || now.orig_rax != SYS_ioctl
		 || now.rsi != UFFDIO_WAKE || now.rax != (unsigned long long)-ENOSYS);
	CHECK_EQ(write(tell, "w", 1), 1);
	for (;;)
		pause();
}

static _Atomic uint32_t touched_count;

static void *touch_on(void *argument)
{
	struct setting *set = argument;

	while (!atomic_load(&is_over) && set->next < PAGES) {
		touch(set, 1);
		atomic_store(&touched_count, set->next);
		/* It is to have the turn again by when it is held. */
		if (set->next % 100 == 0)
			usleep(1000);
	}
	return NULL;
}

/* It gave the turn back, and is put aside before it wakes who waits: on a processor that others
 * want, that may be for a second. */
static void nobody_waits_for_its_wake(void)
{
	struct pollfd is_held = {.events = POLLIN};
	int pipe_fds[2], status;
	struct setting set;
	pthread_t toucher;
	pid_t holder, near;
	uint32_t before;

	if (CHECK_SANITIZER_FACTOR != 1)
		SKIP("a sanitizer allows no new thread in a child of many threads");
	set_up(&set);
	have_it_serve(&set);
	near = atomic_load(&set.session->pager.near.id);
	CHECK_EQ(pipe(pipe_fds), 0);
	holder = fork();
	CHECK(holder >= 0);
	if (holder == 0)
		hold_at_wake(near, pipe_fds[1]);
	close(pipe_fds[1]);
	atomic_store(&is_over, false);
	CHECK_EQ(pthread_create(&toucher, NULL, touch_on, &set), 0);
	is_held.fd = pipe_fds[0];
	while (poll(&is_held, 1, 10) == 0 && atomic_load(&touched_count) < PAGES)
		continue;
	before = atomic_load(&touched_count);
	for (int i = 0; i < 2000 && set.next < PAGES && atomic_load(&touched_count) < before + 100;
	     i++)
		usleep(10000);
	if (is_held.revents & POLLIN)
		CHECK(atomic_load(&touched_count) > before);
	kill(holder, SIGKILL);
	CHECK_EQ(waitpid(holder, &status, 0), holder);
	atomic_store(&is_over, true);
	pthread_join(toucher, NULL);
	tear_down(&set);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		SKIP("a child may not trace its parent here");
	if (!(is_held.revents & POLLIN))
		SKIP("it did not serve: others keep each processor busy");
}
#else
static void nobody_waits_for_its_wake(void)
{
	SKIP("the registers that tell what is called are known on x86-64 only");
}
#endif

static const struct check_case cases[] = {
	CHECK_CASE(serves_who_faults_again_and_again),
	CHECK_CASE(gives_the_turn_back_when_nobody_faults),
	CHECK_CASE(gives_way_to_loads_ahead),
	CHECK_CASE(serves_beside_those_who_install),
	CHECK_CASE_LIMIT(closes_while_it_has_the_turn, 120),
	CHECK_CASE_LIMIT(children_go_on_alone, 120),
	CHECK_CASE(is_relieved_where_it_gets_no_time),
	CHECK_CASE(serves_others_too),
	CHECK_CASE(nobody_waits_for_its_wake),
};
CHECK_MAIN(cases)
