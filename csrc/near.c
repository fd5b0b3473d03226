#include "near.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "jobs.h"
#include "reserve.h"

/* Faults in a row, of one thread, each at most so long after the one before was served, that make
 * it worth while. */
#define STREAK 8u
#define GAP_NS 500000u
/* How often to look where the toucher runs, in faults: it takes as long as serving one. */
#define LOOK_EVERY 64u
/* And sooner where the next fault is late, as it is when two processors had to be waked for it. */
#define LOOK_LATE 4u
#define LATE_NS   20000u
/* So many of them by other threads, and it is of no use. */
#define STRAYS_MAX    4u
#define LOOK_AFTER_MS 2
/* Rounds of looking after it without a fault, until it may sleep. */
#define QUIET_ROUNDS 4u
#define WAIT_MS      3
/* After it was starved: not again for so long, and twice as long each time. */
#define BUSY_NS    5000000u
#define BAN_MIN_NS 50000000u
#define BAN_MAX_NS 4000000000u
/* What a thread takes to start, and to spare: stacks, what the kernel and the C library keep of it.
 */
#define START_BYTES (192u << 10)
/* Served at a stretch, this many, it may be tried again soon. */
#define GOOD_ROUNDS 5000u

/* ---- Whether ---- */

void lr_near_note(struct lr_near *near, uint32_t thread, uint64_t read_ns, uint64_t served_ns)
{
	uint64_t gap_ns = read_ns - near->served_ns;
	bool is_soon =
		gap_ns < GAP_NS || atomic_load_explicit(&near->ignores_load, memory_order_relaxed);

	near->since++;
	near->is_late = gap_ns > LATE_NS;
	if (thread == near->toucher && thread != 0) {
		near->streak = is_soon ? near->streak + 1 : 0;
	} else {
		near->strays++;
		near->streak = 0;
		near->toucher = thread;
	}
	near->served_ns = served_ns;
}

bool lr_near_is_wanted(const struct lr_near *near)
{
	return near->is_possible && near->streak >= STREAK
	       && near->served_ns >= near->banned_until_ns
	       && !atomic_load_explicit(&near->is_unfit, memory_order_relaxed);
}

static void ban(struct lr_near *near, uint32_t rounds)
{
	near->ban_ns = rounds >= GOOD_ROUNDS || near->ban_ns == 0 ? BAN_MIN_NS : near->ban_ns * 2;
	if (near->ban_ns > BAN_MAX_NS)
		near->ban_ns = BAN_MAX_NS;
	near->banned_until_ns = lr_clock_ns() + near->ban_ns;
}

/* What a file in /proc says, as text: its length, or 0. */
static size_t read_text(const char *path, char *ret_text, size_t room)
{
	/* Not by the C library's functions: ThreadSanitizer takes equal numbers of two pagers'
	 * tables for one descriptor. */
	int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	ssize_t got;

	if (fd < 0)
		return 0;
	got = syscall(SYS_read, fd, ret_text, room - 1);
	syscall(SYS_close, fd);
	if (got <= 0)
		return 0;
	ret_text[got] = 0;
	return (size_t)got;
}

/* True where others want to run, besides `own` threads that have to do with this, on each
 * processor: then none sleeps, and there is nothing to be gained. */
static bool is_machine_busy(const struct lr_near *near, uint32_t own)
{
	char text[128];
	const char *at;

	/* "0.00 0.01 0.05 2/345 6789": two can run, of 345. */
	if (atomic_load_explicit(&near->ignores_load, memory_order_relaxed)
	    || !read_text("/proc/loadavg", text, sizeof(text)))
		return false;
	at = strchr(text, '/');
	while (at && at > text && at[-1] != ' ')
		at--;
	return at && strtoul(at, NULL, 10) > near->processors - 2 + own;
}

/* ---- The thread ---- */

/* The processor that a thread ran on last, or -1. `process` is 0 for one of this process. */
static int32_t processor_of(int32_t process, uint32_t thread)
{
	char path[64], text[512];
	const char *at;

	if (process)
		snprintf(path, sizeof(path), "/proc/%d/task/%u/stat", process, thread);
	else
		snprintf(path, sizeof(path), "/proc/self/task/%u/stat", thread);
	if (!read_text(path, text, sizeof(text)))
		return -1;
	/* The 39th field; the second ends with the last parenthesis. */
	at = strrchr(text, ')');
	for (int field = 2; at && field < 39; field++)
		at = strchr(at + 1, ' ');
	return at ? (int32_t)strtol(at, NULL, 10) : -1;
}

static bool bind_to(int32_t processor)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((size_t)processor, &one);
	return sched_setaffinity(0, sizeof(one), &one) == 0;
}

/* Go where the toucher is, if it went elsewhere. */
static void follow(struct lr_near *near)
{
	int32_t processor = processor_of(near->process, near->toucher);

	if (processor < 0 || processor >= CPU_SETSIZE) {
		/* It ended, or /proc is not there. */
		atomic_store_explicit(&near->is_over, true, memory_order_relaxed);
		return;
	}
	if (near->strays > STRAYS_MAX)
		atomic_store_explicit(&near->is_over, true, memory_order_relaxed);
	if (processor != near->processor && bind_to(processor))
		atomic_store_explicit(&near->processor, processor, memory_order_relaxed);
	near->since = near->strays = 0;
}

/* Not before the first turn: going back takes a right that ordinary users do not have, and whoever
 * closes the session waits for this thread. */
static void become_near(struct lr_near *near)
{
	struct sched_param none = {0};

	if (sched_setscheduler(0, SCHED_IDLE, &none) < 0) {
		atomic_store_explicit(&near->is_unfit, true, memory_order_relaxed);
		atomic_store_explicit(&near->is_over, true, memory_order_relaxed);
	} else {
		follow(near);
	}
}

/* Serve what there is, with the turn. Whoever waits for a page is waked after the turn was given
 * back: he takes the processor at once, and keeps it for as long as he likes. */
static bool serve_once(struct lr_pager *pager)
{
	struct lr_near *near = &pager->near;
	struct lr_uffd *uffd = &pager->target->uffd;
	uint64_t low, high;
	bool is_more;

	near->defers_wakes = true;
	is_more = lr_pager_serve(pager);
	near->defers_wakes = false;
	low = uffd->wake_low;
	high = uffd->wake_high;
	uffd->wake_low = uffd->wake_high = 0;
	if (near->since >= LOOK_EVERY || (near->is_late && near->since >= LOOK_LATE))
		follow(near);
	if (high > low)
		atomic_fetch_add_explicit(&near->rounds, 1, memory_order_relaxed);
	near->owed_low = low;
	near->owed_high = high;
	/* Release: partner of the acquire of who takes the turn next. */
	atomic_store_explicit(&near->turn, LR_NEAR_WAITS, memory_order_release);
	if (high > low)
		lr_uffd_wake(uffd, low, high - low);
	return is_more;
}

static bool take_turn(struct lr_near *near, uint32_t from, uint32_t to)
{
	return atomic_compare_exchange_strong_explicit(&near->turn, &from, to, memory_order_acq_rel,
						       memory_order_relaxed);
}

static void *run(void *argument)
{
	struct lr_pager *pager = argument;
	struct lr_near *near = &pager->near;
	struct pollfd wait = {.fd = pager->target->uffd.fd, .events = POLLIN};

	prctl(PR_SET_NAME, "lazyrestore-nr");
	lr_pager_have_stack();
	atomic_store(&near->id, (int32_t)syscall(SYS_gettid));
	while (!atomic_load_explicit(&near->is_stopping, memory_order_relaxed)) {
		bool is_first = true;

		if (atomic_load_explicit(&near->turn, memory_order_relaxed) == LR_NEAR_AWAY) {
			syscall(SYS_futex, &near->turn, FUTEX_WAIT_PRIVATE, LR_NEAR_AWAY, NULL,
				NULL, 0);
			continue;
		}
		while (take_turn(near, LR_NEAR_WAITS, LR_NEAR_SERVES)) {
			bool is_more;

			if (is_first)
				become_near(near);
			is_first = false;
			is_more = serve_once(pager);
			if (poll(&wait, 1, is_more ? 1 : WAIT_MS) > 0 && wait.revents & ~POLLIN)
				lr_pager_undo_blocking(pager);
		}
	}
	return NULL;
}

void lr_near_allow(struct lr_pager *pager)
{
	struct lr_near *near = &pager->near;

	near->processor = -1;
	near->process = pager->target->peer;
	/* Where a peer's threads run is not known; or it could keep this one, and the turn. */
	near->is_possible =
		!pager->target->is_remote
		|| (pager->target->are_threads_known && pager->target->uffd.reads_no_wait);
}

/* When it is first wanted: most sessions never come to that. At a memory limit this thread would
 * wait for what the other takes, and who gives memory back for this one: then not now. */
static bool start(struct lr_pager *pager)
{
	struct lr_near *near = &pager->near;

	if (near->is_running)
		return true;
	if (CPU_COUNT(&near->allowed) >= 2) {
		if (!lr_reserve_is_room(START_BYTES)) {
			ban(near, 0);
			return false;
		}
		near->is_running = lr_thread_start(&near->thread, run, pager) == 0;
	}
	near->is_possible = near->is_running;
	return near->is_running;
}

/* It was put aside in the middle: have it run on any processor, and as others do, if that is
 * allowed. */
static void help(const struct lr_near *near)
{
	struct sched_param none = {0};
	pid_t id = atomic_load(&near->id);

	sched_setaffinity(id, sizeof(near->allowed), &near->allowed);
	sched_setscheduler(id, SCHED_OTHER, &none);
}

void lr_near_stop(struct lr_near *near)
{
	if (!near->is_running)
		return;
	atomic_store_explicit(&near->is_stopping, true, memory_order_relaxed);
	/* Past the look at `is_stopping` it may be about to wait: then `turn` is another. */
	atomic_store_explicit(&near->turn, LR_NEAR_SERVES, memory_order_release);
	syscall(SYS_futex, &near->turn, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
	if (near->was_lent)
		help(near);
	pthread_join(near->thread, NULL);
	near->is_running = false;
}

/* ---- Who looks after it ---- */

static void undo_help(struct lr_near *near)
{
	struct sched_param none = {0};

	sched_setscheduler(atomic_load(&near->id), SCHED_IDLE, &none);
	near->processor = -1;
}

static void take_back(struct lr_pager *pager, bool is_helped)
{
	struct lr_near *near = &pager->near;
	struct timespec pause = {.tv_nsec = 20000};

	for (uint32_t tries = 0; !take_turn(near, LR_NEAR_WAITS, LR_NEAR_AWAY); tries++) {
		if (tries == 20 && !is_helped) {
			help(near);
			is_helped = true;
		}
		nanosleep(&pause, NULL);
	}
	if (near->owed_high > near->owed_low)
		lr_uffd_wake(&pager->target->uffd, near->owed_low,
			     near->owed_high - near->owed_low);
	near->owed_low = near->owed_high = 0;
	if (is_helped)
		undo_help(near);
	near->streak = near->strays = 0;
}

/* Faults wait, and not because they came just now. */
static bool is_starved(struct lr_pager *pager, uint32_t rounds)
{
	struct pollfd look = {.fd = pager->target->uffd.fd, .events = POLLIN};
	struct timespec pause = {.tv_nsec = 100000};

	for (int i = 0; i < 2; i++) {
		if (i > 0)
			nanosleep(&pause, NULL);
		if (poll(&look, 1, 0) <= 0
		    || atomic_load_explicit(&pager->near.rounds, memory_order_relaxed) != rounds)
			return false;
	}
	return true;
}

/* The thread that looks after it must not disturb there. */
static void keep_away(int32_t processor, const cpu_set_t *all)
{
	cpu_set_t others = *all;

	if (processor >= 0)
		CPU_CLR((size_t)processor, &others);
	if (CPU_COUNT(&others) > 0)
		sched_setaffinity(0, sizeof(others), &others);
}

void lr_near_lend(struct lr_pager *pager)
{
	struct lr_near *near = &pager->near;
	struct pollfd bell = {.fd = pager->event_fd, .events = POLLIN};
	uint32_t begun = atomic_load_explicit(&near->rounds, memory_order_relaxed), last = begun;
	uint32_t still = 0;
	int32_t kept_from = -1, processor;
	bool is_helped = false, starves = false, is_busy = false;

	if (near->processors == 0)
		near->processors = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
	/* This thread and the toucher. */
	if (is_machine_busy(near, 2)) {
		near->banned_until_ns = near->served_ns + BUSY_NS;
		return;
	}
	/* It may have been changed from outside. */
	sched_getaffinity(0, sizeof(near->allowed), &near->allowed);
	if (!start(pager))
		return;
	near->was_lent = true;
	atomic_store_explicit(&near->is_over, false, memory_order_relaxed);
	/* Release: partner of the acquire in take_turn. */
	atomic_store_explicit(&near->turn, LR_NEAR_WAITS, memory_order_release);
	syscall(SYS_futex, &near->turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	while (poll(&bell, 1, LOOK_AFTER_MS) == 0 && !lr_pager_has_jobs(pager)
	       && !atomic_load_explicit(&near->is_over, memory_order_relaxed)
	       /* And the other one, put aside by the toucher. */
	       && !(is_busy = is_machine_busy(near, 3))) {
		uint32_t rounds = atomic_load_explicit(&near->rounds, memory_order_relaxed);

		processor = atomic_load_explicit(&near->processor, memory_order_relaxed);
		if (processor != kept_from)
			keep_away(processor, &near->allowed);
		kept_from = processor;
		still = rounds == last ? still + 1 : 0;
		last = rounds;
		if (still == 0)
			continue;
		if (atomic_load_explicit(&near->turn, memory_order_relaxed) == LR_NEAR_SERVES) {
			/* Reading a slow disk, or it does not get the processor. */
			if (still > 1 && !is_helped)
				help(near);
			is_helped |= still > 1;
			continue;
		}
		starves = is_starved(pager, rounds);
		if (starves || still >= QUIET_ROUNDS)
			break;
	}
	take_back(pager, is_helped);
	sched_setaffinity(0, sizeof(near->allowed), &near->allowed);
	if (starves || is_helped || is_busy)
		ban(near, last - begun);
}
