/* Waiting for a fill, in the thread that wants it. */
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fill.h"

static int result_of(uint32_t state)
{
	switch (state) {
	case LR_FILL_COMPLETE:
		return LR_OK;
	case LR_FILL_STOPPED:
		return LR_ERR_NOMEM;
	case LR_FILL_RUNNING:
		return LR_ERR_TIMEOUT;
	default:
		return LR_ERR_ARGUMENT;
	}
}

int lr_fill_wait(_Atomic uint32_t *state, int64_t timeout_ns)
{
	uint64_t begin_ns = lr_clock_ns();
	uint32_t seen;

	/* Acquire: partner of the release in set_state. */
	while ((seen = atomic_load_explicit(state, memory_order_acquire)) == LR_FILL_RUNNING) {
		uint64_t passed_ns = lr_clock_ns() - begin_ns;
		uint64_t left_ns = timeout_ns < 0 ? 1000000000 : (uint64_t)timeout_ns - passed_ns;
		struct timespec left;

		if (timeout_ns >= 0 && passed_ns >= (uint64_t)timeout_ns)
			break;
		left.tv_sec = (time_t)(left_ns / 1000000000);
		left.tv_nsec = (long)(left_ns % 1000000000);
		syscall(SYS_futex, state, FUTEX_WAIT_PRIVATE, seen, &left, NULL, 0);
	}
	return result_of(seen);
}
