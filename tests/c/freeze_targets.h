/*
 * Processes to freeze, for the tests of freezing: they count in memory that all share, so that it
 * shows whether they run. Include check.h first.
 */
#ifndef LR_TESTS_FREEZE_TARGETS_H
#define LR_TESTS_FREEZE_TARGETS_H

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "freeze.h"
#include "procmem.h"

#define LIMIT_NS INT64_C(5000000000)
#define WORKERS  8

/* What targets tell; shared with all children. */
struct board {
	_Atomic uint64_t counters[WORKERS];
	_Atomic uint64_t threads_made;
	_Atomic uint64_t signals;
	_Atomic uint64_t signal_sum;
	_Atomic uint64_t sent;
	_Atomic int ready;
	_Atomic int stop;
	_Atomic pid_t pid;
};

static inline struct board *make_board(void)
{
	struct board *board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(board != MAP_FAILED);
	return board;
}

static struct board *board;

static inline int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static inline void sleep_ms(int ms)
{
	struct timespec time = {ms / 1000, ms % 1000 * 1000000L};

	while (nanosleep(&time, &time) == -1)
		;
}

static inline uint64_t count(void)
{
	uint64_t sum = board->threads_made;

	for (int i = 0; i < WORKERS; i++)
		sum += board->counters[i];
	return sum;
}

static inline void expect_running(void)
{
	uint64_t before = count();

	while (count() < before + 3) /* or the case's limit ends it */
		sleep_ms(1);
}

static inline void expect_still(int ms)
{
	uint64_t before = count();

	sleep_ms(ms);
	CHECK_EQ(count(), before);
}

static inline char state_of(pid_t pid)
{
	struct lr_procmem_stat stat;

	CHECK_EQ(lr_procmem_stat(pid, pid, &stat, NULL), LR_OK);
	return stat.state;
}

static inline void wait_for_state(pid_t pid, char state)
{
	while (state_of(pid) != state)
		sleep_ms(1);
}

static inline lr_freeze *freeze_now(pid_t pid)
{
	lr_freeze *freeze;
	struct lr_problem problem = {0};
	int code = lr_freeze_open(pid, LIMIT_NS, &freeze, &problem);

	if (code != LR_OK)
		CHECK_FAIL("lr_freeze_open: %s (%s)", lr_error_name(code),
			   strerror(problem.os_error));
	return freeze;
}

static inline int freeze_code(pid_t pid)
{
	lr_freeze *freeze;
	struct lr_problem problem;
	int code = lr_freeze_open(pid, LIMIT_NS, &freeze, &problem);

	CHECK(freeze == NULL || code == LR_OK);
	if (code < 0)
		CHECK_EQ(problem.code, code);
	lr_freeze_close(freeze);
	return code;
}

/* ---- Targets -------------------------------------------------------------------------------- */

static inline void *run_counter(void *argument)
{
	_Atomic uint64_t *counter = argument;

	for (;;) {
		(*counter)++;
		if (*counter % 64 == 0)
			sched_yield();
	}
	return NULL;
}

static inline pid_t start(void (*run)(void))
{
#ifdef __SANITIZE_THREAD__
	SKIP("ThreadSanitizer adds a thread to each target, and does not bear threads after fork");
#endif
	board = board ? board : make_board();
	board->ready = 0;
	fflush(NULL);
	pid_t pid = (pid_t)CHECK_CALL(fork());
	if (pid == 0) {
		run();
		_exit(0);
	}
	while (!board->ready)
		sleep_ms(1);
	return pid;
}

static inline void end(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static inline void count_alone(void)
{
	board->ready = 1;
	run_counter(&board->counters[0]);
}

static inline void count_in_threads(void)
{
	pthread_t thread;

	for (int i = 1; i < 4; i++)
		CHECK_EQ(pthread_create(&thread, NULL, run_counter, &board->counters[i]), 0);
	count_alone();
}

#endif
