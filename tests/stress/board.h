/*
 * What all processes of a stress run share: counters, who does what since when, and the first
 * mismatch. It lies in shared memory, so that children and grandchildren report to the first
 * process.
 */
#ifndef LR_STRESS_BOARD_H
#define LR_STRESS_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum op {
	OP_TOUCH,    /* read a word of any page */
	OP_CHECK,    /* read all of a page */
	OP_WRITE,    /* write words, or all, of an own page */
	OP_POPULATE, /* lr_session_populate */
	OP_PIPE,     /* write(2) from lazy memory and read(2) into it */
	OP_DONTNEED, /* give own pages up */
	OP_FREE,     /* MADV_FREE, and MADV_PAGEOUT, which takes the freed pages */
	OP_PROTECT,  /* take rights away, see the signal, and give them back */
	OP_ADVISE,   /* advice that must not change a byte */
	OP_LOCK,     /* mlock and munlock */
	OP_UNMAP,    /* munmap own pages, and map others in their place */
	OP_REPLACE,  /* mmap(MAP_FIXED) over own pages */
	OP_MOVE,     /* mremap own pages */
	OP_STATS,    /* read statistics and errors */
	OP_FORK,     /* a child that checks and goes on */
	OP_REOPEN,   /* close a session and open another */
	OP_WAIT,     /* lr_session_wait for the fill */
	OP_SWEEP,    /* read a word of many pages, one after another */
	OPS
};
extern const char *const op_names[OPS];

#define ROWS_MAX 512

enum row_state { ROW_EMPTY, ROW_BUSY, ROW_DONE, ROW_STATES = 4 };

/* A thread of the first process, or a child. */
struct row {
	/* enum row_state, and ROW_STATES times how often it was taken: who gives it back late gives
	 * back nobody else's. */
	_Atomic int state;
	_Atomic int pid;   /* 0: of a child that has not begun */
	_Atomic int taker; /* who took it */
	_Atomic int tid;
	_Atomic int depth;      /* 0: of the first process, 1: child, 2: grandchild */
	_Atomic int thread;     /* whose random numbers it follows */
	_Atomic uint64_t step;  /* how many operations it has begun */
	_Atomic uint64_t now;   /* the operation, as in a log entry (model.h); 0: none */
	_Atomic uint64_t since; /* when it began, CLOCK_MONOTONIC in ns */
};

struct board {
	struct row rows[ROWS_MAX];
	_Atomic int killed[64]; /* the last processes that were killed on purpose */
	_Atomic unsigned killed_next;
	_Atomic uint64_t sequence; /* of log entries, over all threads */
	_Atomic uint64_t done[OPS];
	_Atomic uint64_t refused[OPS]; /* the kernel or the session said no, as it may */
	_Atomic uint64_t longest_ns[OPS];
	_Atomic uint64_t bytes_checked;
	_Atomic uint64_t signals; /* SIGBUS or SIGSEGV that had to come */
	_Atomic uint64_t forks;
	_Atomic uint64_t grandchildren;
	_Atomic uint64_t kills;
	_Atomic uint64_t sessions;
	_Atomic uint64_t fills;
	_Atomic uint64_t in_thread; /* sessions of each kind */
	_Atomic uint64_t by_page;
	_Atomic uint64_t recorded;
	_Atomic uint64_t replayed;
	_Atomic uint64_t near_rounds;
	_Atomic uint64_t touched;       /* clusters that were recorded */
	_Atomic uint64_t bad_addresses; /* of system calls, on what was missing */
	_Atomic uint64_t faults;
	_Atomic uint64_t pages_copied;
	_Atomic uint64_t pages_zeroed;
	_Atomic uint64_t pages_moved;
	_Atomic uint64_t released;
	_Atomic uint64_t damaged_clusters; /* errors that sessions recorded */
	_Atomic int failed;
	_Atomic int stop;
};
extern struct board *board;

void board_open(void);
uint64_t now_ns(void);

/* A row for this thread; NULL where all are taken. */
struct row *row_take(int depth, int thread);
/* A row that was taken becomes this thread's. */
void row_adopt(struct row *row);
bool row_is_busy(const struct row *row);
/* `state` is what it was when it was taken. */
void row_give_back(struct row *row, int state);
void row_begin(struct row *row, uint64_t what);
/* It is done. */
void row_end(struct row *row, enum op op);

static inline void count(_Atomic uint64_t *counter, uint64_t by)
{
	atomic_fetch_add_explicit(counter, by, memory_order_relaxed);
}

/* Say what is wrong, once in the whole run, and end this process. The others see it on the board
 * and are ended by the first. */
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);
/* Returns to the one that may write about the failure; the others' processes end. */
void fail_claim(void);
__attribute__((noreturn)) void fail_exit(void);

void note_killed(int pid);
bool was_killed(int pid);

#endif
