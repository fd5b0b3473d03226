#include "thread.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STACK_BYTES (256u << 10)

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
