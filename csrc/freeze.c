#include "freeze.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "procmem.h"

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#define FIRST_WAIT_NS 20000
#define LAST_WAIT_NS  1000000
/* Room for a directory walk (32 KiB of it is the buffer of readdir, from malloc) and for
 * sanitizers. */
#define STACK_BYTES (256u << 10)

struct lr_freeze {
	pid_t pid;
	int pidfd;
	uint64_t start_time; /* as in /proc/PID/stat */
	int64_t deadline_ns; /* CLOCK_MONOTONIC; INT64_MAX: none */
	pthread_t thread;

	pthread_mutex_t lock; /* of the next three; `changed` goes with it */
	pthread_cond_t changed;
	bool is_settled; /* freezing has succeeded or failed */
	bool is_asked_to_end;
	int code;

	/* The thread's own until it has settled, and again from when it is asked to end. */
	struct lr_problem problem;
	pid_t *tids; /* ascending: attached to */
	uint32_t tid_count;
	uint32_t tid_room;
	int64_t frozen_since_ns; /* 0: nothing was stopped */
	int64_t frozen_ns;
};

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int fail(lr_freeze *freeze, int code, int os_error)
{
	return lr_problem_set(&freeze->problem, code, os_error, LR_NOWHERE, LR_NOWHERE);
}

/* ---- The table of threads ------------------------------------------------------------------- */

/* Where a thread is in the table, or would be put. */
static uint32_t find_tid(const lr_freeze *freeze, pid_t tid)
{
	uint32_t low = 0, high = freeze->tid_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (freeze->tids[middle] < tid)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool have_tid(const lr_freeze *freeze, pid_t tid)
{
	uint32_t at = find_tid(freeze, tid);

	return at < freeze->tid_count && freeze->tids[at] == tid;
}

static int make_room(lr_freeze *freeze)
{
	if (freeze->tid_count < freeze->tid_room)
		return LR_OK;
	uint32_t room = freeze->tid_room ? freeze->tid_room * 2 : 64;
	pid_t *tids = realloc(freeze->tids, room * sizeof(tids[0]));
	if (!tids)
		return fail(freeze, LR_ERR_NOMEM, ENOMEM);
	freeze->tids = tids;
	freeze->tid_room = room;
	return LR_OK;
}

static void put_tid(lr_freeze *freeze, pid_t tid)
{
	uint32_t at = find_tid(freeze, tid);

	memmove(&freeze->tids[at + 1], &freeze->tids[at],
		(freeze->tid_count - at) * sizeof(freeze->tids[0]));
	freeze->tids[at] = tid;
	freeze->tid_count++;
}

static void drop_tid_at(lr_freeze *freeze, uint32_t at)
{
	freeze->tid_count--;
	memmove(&freeze->tids[at], &freeze->tids[at + 1],
		(freeze->tid_count - at) * sizeof(freeze->tids[0]));
}

/* ---- Stopping (in the freeze's own thread) -------------------------------------------------- */

static bool has_ended(const lr_freeze *freeze, pid_t tid)
{
	struct lr_procmem_stat stat;
	int code = lr_procmem_stat(freeze->pid, tid, &stat, NULL);

	if (code < 0)
		return code == LR_ERR_GONE;
	return stat.state == 'Z' || stat.state == 'X';
}

/* A thread that ended is no matter; but the process's first thread takes /proc/PID/maps and mem
 * with it. */
static int thread_ended(lr_freeze *freeze, pid_t tid)
{
	return tid == freeze->pid ? fail(freeze, LR_ERR_GONE, ESRCH) : LR_OK;
}

/* Attach to a thread and ask it to stop. 1: it is new in the table. */
static int seize(lr_freeze *freeze, pid_t tid)
{
	int code = make_room(freeze);

	if (code < 0)
		return code;
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0) {
		int os_error = errno;
		/* A thread that is ending gives EPERM too. */
		if (os_error == ESRCH || has_ended(freeze, tid))
			return thread_ended(freeze, tid);
		return lr_problem_from_errno(&freeze->problem, os_error);
	}
	put_tid(freeze, tid);
	if (freeze->frozen_since_ns == 0)
		freeze->frozen_since_ns = now_ns();
	/* ESRCH: it ended since, which wait_stopped() finds. */
	ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	return 1;
}

/* Attach to all threads that are not in the table. Returns how many were new. */
static int seize_new(lr_freeze *freeze)
{
	char path[32];
	int found = 0;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)freeze->pid);
	DIR *directory = opendir(path);
	if (!directory)
		return lr_problem_from_errno(&freeze->problem, errno == ENOENT ? ESRCH : errno);
	for (;;) {
		errno = 0;
		struct dirent *entry = readdir(directory);
		if (!entry) {
			/* ENOENT: the process ended while its threads were listed. */
			if (errno != 0)
				found = lr_problem_from_errno(&freeze->problem,
							      errno == ENOENT ? ESRCH : errno);
			break;
		}
		pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);
		if (tid <= 0 || have_tid(freeze, tid))
			continue;
		int code = seize(freeze, tid);
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

/* Wait until all threads in the table are stopped. Returns how many were not, at first. */
static int wait_stopped(lr_freeze *freeze)
{
	int waited = 0;

	for (uint32_t i = 0; i < freeze->tid_count;) {
		pid_t tid = freeze->tids[i];
		struct timespec pause = {.tv_nsec = FIRST_WAIT_NS};
		bool stopped = is_stopped(tid), ended = false;

		waited += !stopped;
		while (!stopped && !ended) {
			if (now_ns() >= freeze->deadline_ns)
				return fail(freeze, LR_ERR_TIMEOUT, 0);
			nanosleep(&pause, NULL);
			if (pause.tv_nsec < LAST_WAIT_NS)
				pause.tv_nsec *= 2;
			stopped = is_stopped(tid);
			ended = !stopped && has_ended(freeze, tid);
		}
		if (ended) {
			drop_tid_at(freeze, i);
			if (thread_ended(freeze, tid) < 0)
				return LR_ERR_GONE;
			continue;
		}
		i++;
	}
	return waited;
}

/*
 * Done when a list of all threads, made while all that are known had been stopped, shows no other:
 * then none was left that could have made one. Asking again whether they are stopped costs little
 * and finds the thread that exec() put in the place of the first.
 */
static int freeze_all(lr_freeze *freeze)
{
	int found, waited;

	do {
		found = seize_new(freeze);
		if (found < 0)
			return found;
		waited = wait_stopped(freeze);
		if (waited < 0)
			return waited;
		if (now_ns() >= freeze->deadline_ns)
			return fail(freeze, LR_ERR_TIMEOUT, 0);
	} while (found > 0 || waited > 0);
	return lr_freeze_check(freeze) < 0 ? fail(freeze, LR_ERR_GONE, ESRCH) : LR_OK;
}

/* ---- Letting go (in the freeze's own thread) ------------------------------------------------ */

static void release(pid_t tid)
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
	ptrace(PTRACE_DETACH, tid, NULL, (void *)signal_number);
}

static void *freeze_main(void *argument)
{
	lr_freeze *freeze = argument;
	int code = freeze_all(freeze);

	pthread_mutex_lock(&freeze->lock);
	freeze->code = code;
	freeze->is_settled = true;
	pthread_cond_broadcast(&freeze->changed);
	while (code >= 0 && !freeze->is_asked_to_end)
		pthread_cond_wait(&freeze->changed, &freeze->lock);
	pthread_mutex_unlock(&freeze->lock);

	for (uint32_t i = 0; i < freeze->tid_count; i++)
		release(freeze->tids[i]);
	if (freeze->frozen_since_ns)
		freeze->frozen_ns = now_ns() - freeze->frozen_since_ns;
	return NULL;
}

/* ---- Public --------------------------------------------------------------------------------- */

static int start_thread(lr_freeze *freeze)
{
	sigset_t all, old;
	pthread_attr_t attributes;

	/* The program's signal handlers are for its own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	int os_error = pthread_create(&freeze->thread, &attributes, freeze_main, freeze);
	pthread_attr_destroy(&attributes);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return os_error ? lr_problem_from_errno(&freeze->problem, os_error) : LR_OK;
}

/* Hold on to the process (a pid alone may soon be another's), and see that it is one that can be
 * frozen. */
static int open_process(lr_freeze *freeze)
{
	struct lr_procmem_stat stat;

	freeze->pidfd = (int)syscall(SYS_pidfd_open, freeze->pid, 0);
	if (freeze->pidfd < 0) {
		/* EINVAL and ENOENT: the number of a thread that is not the first of its process.
		 */
		if (errno == ESRCH || errno == EINVAL || errno == ENOENT)
			return fail(freeze, LR_ERR_NOT_FOUND, ESRCH);
		return lr_problem_from_errno(&freeze->problem, errno);
	}
	int code = lr_procmem_stat(freeze->pid, freeze->pid, &stat, &freeze->problem);
	/* It is there (the pidfd would be readable), but not to be seen: /proc with hidepid. */
	if (code == LR_ERR_GONE && poll(&(struct pollfd){freeze->pidfd, POLLIN, 0}, 1, 0) == 0)
		return fail(freeze, LR_ERR_PERMISSION, EACCES);
	if (code < 0)
		return code;
	if (stat.state == 'Z' || stat.state == 'X')
		return fail(freeze, LR_ERR_GONE, ESRCH);
	if (stat.is_kernel)
		return fail(freeze, LR_ERR_ARGUMENT, 0);
	freeze->start_time = stat.start_time;
	return LR_OK;
}

static void end_thread(lr_freeze *freeze)
{
	pthread_mutex_lock(&freeze->lock);
	freeze->is_asked_to_end = true;
	pthread_cond_broadcast(&freeze->changed);
	pthread_mutex_unlock(&freeze->lock);
	pthread_join(freeze->thread, NULL);
}

static void discard(lr_freeze *freeze)
{
	if (freeze->pidfd >= 0)
		close(freeze->pidfd);
	pthread_cond_destroy(&freeze->changed);
	pthread_mutex_destroy(&freeze->lock);
	free(freeze->tids);
	free(freeze);
}

int lr_freeze_open(int32_t pid, int64_t timeout_ns, lr_freeze **ret_freeze,
		   struct lr_problem *ret_problem)
{
	struct lr_procmem_stat stat;

	*ret_freeze = NULL;
	if (pid <= 0 || pid == getpid())
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	lr_freeze *freeze = calloc(1, sizeof(*freeze));
	if (!freeze)
		return lr_problem_from_errno(ret_problem, ENOMEM);
	int64_t now = now_ns();
	freeze->pid = pid;
	freeze->deadline_ns =
		timeout_ns < 0 || timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
	pthread_mutex_init(&freeze->lock, NULL);
	pthread_cond_init(&freeze->changed, NULL);

	int code = open_process(freeze);
	if (code >= 0)
		code = start_thread(freeze);
	if (code >= 0) {
		pthread_mutex_lock(&freeze->lock);
		while (!freeze->is_settled)
			pthread_cond_wait(&freeze->changed, &freeze->lock);
		code = freeze->code;
		pthread_mutex_unlock(&freeze->lock);
		/* The number went to another process between the first look and the freezing. */
		if (code >= 0
		    && (lr_procmem_stat(pid, pid, &stat, NULL) < 0
			|| stat.start_time != freeze->start_time))
			code = fail(freeze, LR_ERR_GONE, ESRCH);
		if (code < 0)
			end_thread(freeze);
	}
	if (code < 0) {
		if (ret_problem)
			*ret_problem = freeze->problem;
		discard(freeze);
		return code;
	}
	*ret_freeze = freeze;
	return LR_OK;
}

int64_t lr_freeze_close(lr_freeze *freeze)
{
	if (!freeze)
		return 0;
	end_thread(freeze);
	int64_t frozen_ns = freeze->frozen_ns;
	discard(freeze);
	return frozen_ns;
}

int lr_freeze_check(const lr_freeze *freeze)
{
	struct pollfd ended = {.fd = freeze->pidfd, .events = POLLIN};
	struct lr_procmem_stat stat;

	if (poll(&ended, 1, 0) != 0)
		return LR_ERR_GONE;
	/* A killed process whose other threads nobody has waited for does not show in the pidfd. */
	int code = lr_procmem_stat(freeze->pid, freeze->pid, &stat, NULL);
	if (code < 0)
		return code;
	return stat.state == 't' || stat.state == 'T' ? LR_OK : LR_ERR_GONE;
}

uint32_t lr_freeze_thread_count(const lr_freeze *freeze)
{
	return freeze->tid_count;
}
