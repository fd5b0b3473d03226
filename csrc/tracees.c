#include "tracees.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#include "error.h"
#include "procmem.h"

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#define FIRST_WAIT_NS 20000
#define LAST_WAIT_NS  1000000
#define REFUSED_TRIES 200 /* each FIRST_WAIT_NS after the other */
#define SLEEPS_NS     20000000
#define WAITS_NS      200000000
#define EXEC_WAIT_NS  200000000 /* for the thread that exec() puts in the first one's place */

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int fail(struct lr_tracees *all, int code, int os_error)
{
	return lr_problem_set(&all->problem, code, os_error, LR_NOWHERE, LR_NOWHERE);
}

/* ---- The table of threads ------------------------------------------------------------------- */

/* Where a thread is in the table, or would be put. */
static uint32_t find_tid(const struct lr_tracees *all, pid_t tid)
{
	uint32_t low = 0, high = all->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (all->threads[middle].tid < tid)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool have_tid(const struct lr_tracees *all, pid_t tid)
{
	uint32_t at = find_tid(all, tid);

	return at < all->count && all->threads[at].tid == tid;
}

static int make_room(struct lr_tracees *all)
{
	if (all->count < all->room)
		return LR_OK;
	uint32_t room = all->room ? all->room * 2 : 64;
	struct lr_tracee *threads = realloc(all->threads, room * sizeof(threads[0]));
	if (!threads)
		return fail(all, LR_ERR_NOMEM, ENOMEM);
	all->threads = threads;
	all->room = room;
	return LR_OK;
}

static void put_tid(struct lr_tracees *all, pid_t tid)
{
	uint32_t at = find_tid(all, tid);

	memmove(&all->threads[at + 1], &all->threads[at],
		(all->count - at) * sizeof(all->threads[0]));
	all->threads[at] = (struct lr_tracee){.tid = tid};
	all->count++;
}

static void drop_tid_at(struct lr_tracees *all, uint32_t at)
{
	all->count--;
	memmove(&all->threads[at], &all->threads[at + 1],
		(all->count - at) * sizeof(all->threads[0]));
}

/* ---- Stopping ------------------------------------------------------------------------------- */

static void sleep_ns(long ns)
{
	struct timespec pause = {.tv_nsec = ns};

	nanosleep(&pause, NULL);
}

static bool has_ended(const struct lr_tracees *all, pid_t tid)
{
	struct lr_procmem_stat stat;
	int code = lr_procmem_stat(all->pid, tid, &stat, NULL);

	if (code < 0)
		return code == LR_ERR_GONE;
	return stat.state == 'Z' || stat.state == 'X';
}

/*
 * Take note of a thread that ended while it was attached to. Before that it has not ended for one
 * that is in exec(), which waits for all others. Not for the process's first thread: that the
 * process ended is for its parent. (__WCLONE: nor for any other child of this process.)
 */
static void reap_thread(pid_t tid)
{
	siginfo_t info;

	waitid(P_PID, (id_t)tid, &info, WEXITED | WNOHANG | __WCLONE);
}

/*
 * A thread that ended is no matter; but the process's first thread takes /proc/PID/maps and mem
 * with it. Unless another thread is in exec(): that ends all others, and takes the first one's
 * number and place, in a moment.
 */
static int thread_ended(struct lr_tracees *all, pid_t tid)
{
	struct pollfd ended = {.fd = all->pidfd, .events = POLLIN};

	if (tid != all->pid) {
		reap_thread(tid);
		return LR_OK;
	}
	for (int64_t until_ns = now_ns() + EXEC_WAIT_NS;
	     now_ns() < until_ns && poll(&ended, 1, 0) == 0;) {
		if (!has_ended(all, tid))
			return LR_OK;
		sleep_ns(FIRST_WAIT_NS);
	}
	return fail(all, LR_ERR_GONE, ESRCH);
}

/* Attach to a thread and ask it to stop. 1: it is new in the table. */
static int seize(struct lr_tracees *all, pid_t tid)
{
	int code = make_room(all);

	if (code < 0)
		return code;
	for (int tries = 0; ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0; tries++) {
		int os_error = errno;
		/* EPERM, too, where it is ours already: exec() gave one of ours this number. */
		if (os_error == EPERM && ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) == 0)
			break;
		/* And where it is ending; by now, again by exec(), the number may be another's. */
		bool ended = os_error == ESRCH || has_ended(all, tid);
		if (ended && thread_ended(all, tid) < 0)
			return LR_ERR_GONE;
		if (ended && tid != all->pid)
			return LR_OK;
		if ((os_error != EPERM && !ended) || tries == REFUSED_TRIES)
			return lr_problem_from_errno(&all->problem, os_error);
		sleep_ns(FIRST_WAIT_NS);
	}
	put_tid(all, tid);
	if (all->since_ns == 0)
		all->since_ns = now_ns();
	/* ESRCH: it ended since, which wait_stopped() finds. */
	ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	return 1;
}

/* Attach to all threads that are not in the table. Returns how many were new. */
static int seize_new(struct lr_tracees *all)
{
	char path[32];
	int found = 0;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)all->pid);
	DIR *directory = opendir(path);
	if (!directory)
		return lr_problem_from_errno(&all->problem, errno == ENOENT ? ESRCH : errno);
	for (;;) {
		errno = 0;
		struct dirent *entry = readdir(directory);
		if (!entry) {
			/* ENOENT: the process ended while its threads were listed. */
			if (errno != 0)
				found = lr_problem_from_errno(&all->problem,
							      errno == ENOENT ? ESRCH : errno);
			break;
		}
		pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);
		if (tid <= 0 || have_tid(all, tid))
			continue;
		int code = seize(all, tid);
		if (code < 0) {
			found = code;
			break;
		}
		found += code;
	}
	closedir(directory);
	return found;
}

/*
 * Is it in a ptrace stop? The kernel answers that by itself; what wait() says is not relied upon,
 * because any thread of this process may have waited. The notice is still taken out, so that no
 * waitpid(-1) elsewhere sees a process that is not its child. Without WEXITED: the end of the
 * process is for its parent, which may be this one.
 */
static bool is_stopped(pid_t tid)
{
	siginfo_t info;

	if (ptrace(PTRACE_GETSIGINFO, tid, NULL, &info) < 0 && errno != EINVAL)
		return false;
	waitid(P_PID, (id_t)tid, &info, WSTOPPED | WNOHANG | __WALL | __WNOTHREAD);
	return true;
}

static bool release(pid_t tid)
{
	siginfo_t info = {0};
	uintptr_t signal_number = 0;

	/* A thread that stopped where it takes a signal gets it now; other stops are ours, or
	 * SIGSTOP's. */
	if (ptrace(PTRACE_GETSIGINFO, tid, NULL, &info) == 0
	    && info.si_code >> 8 != PTRACE_EVENT_STOP)
		signal_number = (uintptr_t)info.si_signo;
	/* Not stopped (timeout) or ended: the kernel lets go of it when this thread ends, in a
	 * moment. */
	return ptrace(PTRACE_DETACH, tid, NULL, (void *)signal_number) == 0;
}

/*
 * Let all run that are stopped but for those that are held, and hold this one, which cannot stop
 * where it waits in the kernel. It may wait for one of the others: a page that is lazily restored
 * comes from a thread of the same process.
 */
static void give_way(struct lr_tracees *all, pid_t tid)
{
	all->threads[find_tid(all, tid)].is_held = true;
	for (uint32_t i = 0; i < all->count;) {
		if (!all->threads[i].is_held && release(all->threads[i].tid))
			drop_tid_at(all, i);
		else
			i++;
	}
}

/* Does it look as if a thread waits in the kernel for another one? At once where it shows; but a
 * wait for a page turns into a loop, seen as running, when it is interrupted. */
static bool is_waiting(const struct lr_tracees *all, pid_t tid, int64_t since_ns)
{
	struct lr_procmem_stat stat;
	int64_t waited_ns = now_ns() - since_ns;

	return waited_ns > WAITS_NS
	       || (waited_ns > SLEEPS_NS && lr_procmem_stat(all->pid, tid, &stat, NULL) == LR_OK
		   && stat.state == 'D');
}

/* Wait until this thread of the table is stopped. 0: it has ended, or is not ours. 2: others were
 * let run for it. */
static int wait_for(struct lr_tracees *all, pid_t tid)
{
	int64_t since_ns = now_ns();
	int outcome = 1;

	for (long pause_ns = FIRST_WAIT_NS; !is_stopped(tid);) {
		/* Asked again: exec() may have put another in its place, one of ours (which now
		 * stops) or not (then it is to be attached to). */
		if (has_ended(all, tid) || ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0)
			return 0;
		if (now_ns() >= all->deadline_ns)
			return fail(all, LR_ERR_TIMEOUT, 0);
		if (outcome == 1 && is_waiting(all, tid, since_ns)) {
			give_way(all, tid);
			outcome = 2;
		}
		sleep_ns(pause_ns);
		if (pause_ns < LAST_WAIT_NS)
			pause_ns *= 2;
	}
	return outcome;
}

/* Wait until all threads in the table are stopped. Returns how many were not, at first. */
static int wait_stopped(struct lr_tracees *all)
{
	int waited = 0;

	for (uint32_t i = 0; i < all->count;) {
		pid_t tid = all->threads[i].tid;

		if (is_stopped(tid)) {
			i++;
			continue;
		}
		waited++;
		int outcome = wait_for(all, tid);
		if (outcome < 0)
			return outcome;
		if (outcome == 0) {
			drop_tid_at(all, find_tid(all, tid));
			if (has_ended(all, tid) && thread_ended(all, tid) < 0)
				return LR_ERR_GONE;
		}
		if (outcome == 2)
			break; /* the table is another one: from the beginning */
	}
	return waited;
}

/* Is each of its threads in the table? The kernel's list of them does not say: it breaks off where
 * a thread ends, and is empty in the middle of exec(). */
static bool have_all(const struct lr_tracees *all)
{
	struct lr_procmem_stat stat;

	return lr_procmem_stat(all->pid, all->pid, &stat, NULL) == LR_OK
	       && stat.thread_count == all->count;
}

/*
 * Done when all threads that there are had been stopped before they were counted: then none was
 * left that could have made one. Asking again whether they are stopped costs little and finds the
 * thread that exec() put in the place of the first.
 */
int lr_tracees_stop(struct lr_tracees *all)
{
	int found, waited;

	do {
		found = seize_new(all);
		if (found >= 0 && !have_tid(all, all->pid))
			found = seize(all, all->pid);
		if (found < 0)
			return found;
		waited = wait_stopped(all);
		if (waited < 0)
			return waited;
		if (now_ns() >= all->deadline_ns)
			return fail(all, LR_ERR_TIMEOUT, 0);
	} while (found > 0 || waited > 0 || !have_all(all));
	return lr_tracees_check(all) < 0 ? fail(all, LR_ERR_GONE, ESRCH) : LR_OK;
}

/* ---- Letting go ----------------------------------------------------------------------------- */

void lr_tracees_release(struct lr_tracees *all)
{
	for (uint32_t i = 0; i < all->count; i++)
		release(all->threads[i].tid);
}

/* ---- From any thread ------------------------------------------------------------------------ */

void lr_tracees_reap(const struct lr_tracees *all)
{
	char path[32];
	struct dirent *entry;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)all->pid);
	DIR *directory = opendir(path);
	if (!directory)
		return;
	while ((entry = readdir(directory))) {
		pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);
		if (tid > 0 && tid != all->pid)
			reap_thread(tid);
	}
	closedir(directory);
}

int lr_tracees_check(const struct lr_tracees *all)
{
	struct pollfd ended = {.fd = all->pidfd, .events = POLLIN};
	struct lr_procmem_stat stat;

	if (poll(&ended, 1, 0) != 0)
		return LR_ERR_GONE;
	/* A killed process whose other threads nobody has waited for does not show in the pidfd. */
	int code = lr_procmem_stat(all->pid, all->pid, &stat, NULL);
	if (code < 0)
		return code;
	return stat.state == 't' || stat.state == 'T' ? LR_OK : LR_ERR_GONE;
}
