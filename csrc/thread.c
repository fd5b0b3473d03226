#include "thread.h"

#include <errno.h>
#include <limits.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STACK_BYTES (256u << 10)

/* ThreadSanitizer reports on standard error, from whatever thread. */
#ifdef __SANITIZE_THREAD__
#define FIRST_CLOSED 3u
#else
#define FIRST_CLOSED 0u
#endif

int lr_thread_start(pthread_t *ret_thread, void *(*run_it)(void *), void *argument)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	if (pthread_attr_init(&attributes))
		return ENOMEM;
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(ret_thread, &attributes, run_it, argument);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return error;
}

static int by_number(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

bool lr_thread_keep(int *fds, unsigned count)
{
	unsigned next = FIRST_CLOSED;

	qsort(fds, count, sizeof(fds[0]), by_number);
	if (syscall(SYS_close_range, (unsigned)fds[count - 1] + 1, ~0u, CLOSE_RANGE_UNSHARE) < 0)
		return false;
	for (unsigned i = 0; i < count; i++) {
		if (fds[i] > (int)next)
			syscall(SYS_close_range, next, (unsigned)fds[i] - 1, 0);
		if (fds[i] >= (int)next)
			next = (unsigned)fds[i] + 1;
	}
	return true;
}

void lr_flag_raise(_Atomic uint32_t *flag)
{
	/* Release: partner of the acquire in lr_flag_wait. */
	atomic_store_explicit(flag, 1, memory_order_release);
	syscall(SYS_futex, flag, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void lr_flag_wait(_Atomic uint32_t *flag)
{
	while (!atomic_load_explicit(flag, memory_order_acquire))
		syscall(SYS_futex, flag, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

void lr_thread_yield_to_all(void)
{
	struct sched_param none = {0};

	if (sched_setscheduler(0, SCHED_IDLE, &none) < 0)
		setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
	/* ioprio_set(IOPRIO_WHO_PROCESS, this thread, IOPRIO_CLASS_IDLE), which has no header. */
	syscall(SYS_ioprio_set, 1, 0, 3 << 13);
}
