#include "board.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

const char *const op_names[OPS] = {
	[OP_TOUCH] = "touch",   [OP_CHECK] = "check",       [OP_WRITE] = "write",
	[OP_PIPE] = "pipe",     [OP_POPULATE] = "populate", [OP_DONTNEED] = "dontneed",
	[OP_FREE] = "free",     [OP_PROTECT] = "protect",   [OP_ADVISE] = "advise",
	[OP_LOCK] = "lock",     [OP_UNMAP] = "unmap",       [OP_REPLACE] = "replace",
	[OP_MOVE] = "move",     [OP_STATS] = "stats",       [OP_FORK] = "fork",
	[OP_REOPEN] = "reopen", [OP_WAIT] = "wait",         [OP_SWEEP] = "sweep",
};

struct board *board;

void board_open(void)
{
	void *memory = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		perror("stress: mmap");
		exit(3);
	}
	board = memory;
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct row *row_take(int depth, int thread)
{
	for (unsigned i = 0; i < ROWS_MAX; i++) {
		struct row *row = &board->rows[i];
		int state = atomic_load(&row->state);

		int taken = state - state % ROW_STATES + ROW_STATES + ROW_BUSY;

		/* Children come and go: what has ended is used again. */
		if (state % ROW_STATES == ROW_BUSY
		    || !atomic_compare_exchange_strong(&row->state, &state, taken))
			continue;
		atomic_store(&row->now, 0);
		atomic_store(&row->depth, depth);
		atomic_store(&row->thread, thread);
		atomic_store(&row->since, now_ns());
		atomic_store(&row->pid, 0);
		atomic_store(&row->taker, getpid());
		return row;
	}
	return NULL;
}

void row_adopt(struct row *row)
{
	atomic_store(&row->since, now_ns());
	atomic_store(&row->pid, getpid());
	atomic_store(&row->tid, (int)syscall(SYS_gettid));
}

bool row_is_busy(const struct row *row)
{
	return atomic_load(&row->state) % ROW_STATES == ROW_BUSY;
}

void row_give_back(struct row *row, int state)
{
	atomic_compare_exchange_strong(&row->state, &state, state - ROW_BUSY + ROW_DONE);
}

void row_begin(struct row *row, uint64_t what)
{
	atomic_store_explicit(&row->since, now_ns(), memory_order_relaxed);
	atomic_store_explicit(&row->now, what, memory_order_relaxed);
	atomic_fetch_add_explicit(&row->step, 1, memory_order_relaxed);
}

void row_end(struct row *row, enum op op)
{
	uint64_t took = now_ns() - atomic_load_explicit(&row->since, memory_order_relaxed);
	uint64_t longest = atomic_load_explicit(&board->longest_ns[op], memory_order_relaxed);

	while (took > longest
	       && !atomic_compare_exchange_weak(&board->longest_ns[op], &longest, took))
		continue;
	atomic_store_explicit(&row->now, 0, memory_order_relaxed);
}

void fail_claim(void)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&board->failed, &none, 1))
		return;
	/* It may be a thread of this process that writes. */
	for (int i = 0; i < 150 && atomic_load(&board->failed) == 1; i++)
		usleep(100000);
	_exit(1);
}

void fail_exit(void)
{
	fflush(stderr);
	/* 2: all is written, so that the first process may end everything. */
	atomic_store(&board->failed, 2);
	_exit(1);
}

void fail(const char *format, ...)
{
	va_list arguments;

	fail_claim();
	fprintf(stderr, "stress: pid %d: ", getpid());
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	fail_exit();
}

void note_killed(int pid)
{
	atomic_store(&board->killed[atomic_fetch_add(&board->killed_next, 1) % 64], pid);
}

bool was_killed(int pid)
{
	for (unsigned i = 0; i < 64; i++)
		if (atomic_load(&board->killed[i]) == pid)
			return true;
	return false;
}
