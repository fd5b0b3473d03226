#include "freeze.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "procmem.h"
#include "tracees.h"

#define REAP_EVERY_NS 5000000
/* Room for a directory walk (32 KiB of it is the buffer of readdir, from malloc) and for
 * sanitizers. */
#define STACK_BYTES (256u << 10)

struct lr_freeze {
	uint64_t start_time; /* as in /proc/PID/stat */
	pthread_t thread;

	pthread_mutex_t lock; /* of the next three; `changed` goes with it */
	pthread_cond_t changed;
	bool is_settled; /* freezing has succeeded or failed */
	bool is_asked_to_end;
	int code;

	/* The thread's own until it has settled, and again from when it is asked to end. But for
	 * its pid and pidfd, which stay as they are. */
	struct lr_tracees all;
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
	return lr_problem_set(&freeze->all.problem, code, os_error, LR_NOWHERE, LR_NOWHERE);
}

static void *freeze_main(void *argument)
{
	lr_freeze *freeze = argument;
	int code = lr_tracees_stop(&freeze->all);

	pthread_mutex_lock(&freeze->lock);
	freeze->code = code;
	freeze->is_settled = true;
	pthread_cond_broadcast(&freeze->changed);
	while (code >= 0 && !freeze->is_asked_to_end)
		pthread_cond_wait(&freeze->changed, &freeze->lock);
	pthread_mutex_unlock(&freeze->lock);

	lr_tracees_release(&freeze->all);
	if (freeze->all.since_ns)
		freeze->frozen_ns = now_ns() - freeze->all.since_ns;
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
	return os_error ? lr_problem_from_errno(&freeze->all.problem, os_error) : LR_OK;
}

static int wait_settled(lr_freeze *freeze)
{
	struct timespec until;

	pthread_mutex_lock(&freeze->lock);
	while (!freeze->is_settled) {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += REAP_EVERY_NS;
		if (until.tv_nsec >= 1000000000L) {
			until.tv_nsec -= 1000000000L;
			until.tv_sec++;
		}
		if (pthread_cond_timedwait(&freeze->changed, &freeze->lock, &until) == 0)
			continue;
		pthread_mutex_unlock(&freeze->lock);
		lr_tracees_reap(&freeze->all);
		pthread_mutex_lock(&freeze->lock);
	}
	int code = freeze->code;
	pthread_mutex_unlock(&freeze->lock);
	return code;
}

/* Hold on to the process (a pid alone may soon be another's), and see that it is one that can be
 * frozen. */
static int open_process(lr_freeze *freeze)
{
	struct lr_procmem_stat stat;

	freeze->all.pidfd = (int)syscall(SYS_pidfd_open, freeze->all.pid, 0);
	if (freeze->all.pidfd < 0) {
		/* EINVAL and ENOENT: the number of a thread that is not the first of its process.
		 */
		if (errno == ESRCH || errno == EINVAL || errno == ENOENT)
			return fail(freeze, LR_ERR_NOT_FOUND, ESRCH);
		return lr_problem_from_errno(&freeze->all.problem, errno);
	}
	int code = lr_procmem_stat(freeze->all.pid, freeze->all.pid, &stat, &freeze->all.problem);
	/* It is there (the pidfd would be readable), but not to be seen: /proc with hidepid. */
	if (code == LR_ERR_GONE && poll(&(struct pollfd){freeze->all.pidfd, POLLIN, 0}, 1, 0) == 0)
		return fail(freeze, LR_ERR_PERMISSION, EACCES);
	if (code < 0)
		return code;
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
	if (freeze->all.pidfd >= 0)
		close(freeze->all.pidfd);
	pthread_cond_destroy(&freeze->changed);
	pthread_mutex_destroy(&freeze->lock);
	free(freeze->all.threads);
	free(freeze);
}

static void init_condition(pthread_cond_t *condition)
{
	pthread_condattr_t attributes;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(condition, &attributes);
	pthread_condattr_destroy(&attributes);
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
	freeze->all.pid = pid;
	freeze->all.deadline_ns =
		timeout_ns < 0 || timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
	pthread_mutex_init(&freeze->lock, NULL);
	init_condition(&freeze->changed);

	int code = open_process(freeze);
	if (code >= 0)
		code = start_thread(freeze);
	if (code >= 0) {
		code = wait_settled(freeze);
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
			*ret_problem = freeze->all.problem;
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
	return lr_tracees_check(&freeze->all);
}

uint32_t lr_freeze_thread_count(const lr_freeze *freeze)
{
	return freeze->all.count;
}
