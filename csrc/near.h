/*
 * A second thread of the pager's, that serves on the processor of whoever faults. Floor 5.
 *
 * What a fault costs is not the copy but waking a thread on another processor, twice: one that
 * sleeps deeply takes tens of microseconds to wake, in a virtual machine more. So when one thread
 * faults again and again, this one is bound to that thread's processor, and serves there: the one
 * sleeps as the other wakes, and no processor does. It has the scheduling class IDLE. Else the
 * kernel would move whoever it wakes to another processor, one that is idle.
 *
 * It is the pager while it has the turn: one thread at a time reads messages and installs pages. At
 * that class it gets next to nothing of a processor that others want, so the pager's own thread
 * looks after it, each millisecond, and takes the turn back: when faults wait and nobody serves,
 * when there is other work, or when there is none.
 */
#ifndef LR_NEAR_H
#define LR_NEAR_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct lr_pager;

enum lr_near_turn {
	LR_NEAR_AWAY = 0, /* the pager's own thread serves; this one sleeps */
	LR_NEAR_WAITS,    /* for a fault: the turn may be taken away */
	LR_NEAR_SERVES,
};

struct lr_near {
	pthread_t thread;
	bool is_possible;
	bool is_running;
	uint32_t processors;       /* of the machine */
	cpu_set_t allowed;         /* to the pager's own thread */
	int32_t process;           /* whose threads they are; 0: this one */
	bool was_lent;             /* so it is of the class IDLE now */
	_Atomic bool ignores_load; /* for tests: may have the turn on a busy or slow machine too */
	_Atomic bool is_unfit;     /* what it needs is not allowed here */
	_Atomic bool is_stopping;  /* `turn` is waited on, and waked */
	_Atomic uint32_t turn;     /* enum lr_near_turn */
	_Atomic uint32_t rounds;   /* in which it served something */
	_Atomic int32_t id;        /* of the thread */
	_Atomic int32_t processor; /* that it is bound to, or -1 */
	_Atomic bool is_over;      /* it asks to be relieved: others fault too */
	/* The rest is for whose turn it is. */
	uint32_t toucher; /* the thread that faulted last */
	uint32_t streak;  /* how often in a row, each soon after the one before */
	uint32_t strays;  /* faults of others, since it was last looked where `toucher` runs */
	uint32_t since;   /* faults since then */
	uint64_t served_ns;
	bool is_late; /* the fault just served came late */
	bool defers_wakes;
	/* Who is waked after the turn was given back: by whoever takes it too, because this thread
	 * may not come to that for long. */
	uint64_t owed_low;
	uint64_t owed_high;
	uint64_t banned_until_ns;
	uint64_t ban_ns;
};

/* It may be, where it can: the thread starts when it is first lent the turn. Where there is but one
 * processor, or no thread to be had, it is done without. */
void lr_near_allow(struct lr_pager *pager);
void lr_near_stop(struct lr_near *near);

/* A fault was served. */
void lr_near_note(struct lr_near *near, uint32_t thread, uint64_t read_ns, uint64_t served_ns);
/* True where it should have the turn. */
bool lr_near_is_wanted(const struct lr_near *near);
/* Give it the turn, and come back with it. */
void lr_near_lend(struct lr_pager *pager);

#endif
