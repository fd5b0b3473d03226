/*
 * The warden: a process that shares its maker's descriptor table, and does nothing until its maker
 * has ended. Floor 5. Where the userfaultfd of a task has no other holder, the end of the last one
 * makes what is missing read as zeros; and what the kernel has just put into the maker's table (the
 * userfaultfd of a forked child) nobody but a sharer of the table can have.
 *
 *     maker alive                            nothing
 *     maker dead, its keeper alive           gives the keeper what it asks for (warden_serve.c)
 *     maker dead, and there is no keeper     ends the tasks, and answers whatever is left by poison
 *                                            until it is gone (warden_end.c, warden_bury.c)
 *
 * There are two: one sleeps until the other has ended, and goes on in its place. So it takes three
 * to be killed at once, the maker and both, until a child's memory is lost that its keeper was not
 * told of yet.
 *
 * Each has a memory of its own, most of which it gives back at once (warden_shed.c): nothing of the
 * maker's stays behind for its sake. It was not executed anew: that would end the sharing. So it
 * may have been made while other threads held locks: no allocation there, no locks, and nothing of
 * the C library but what is a system call.
 */
#ifndef LR_WARDEN_H
#define LR_WARDEN_H

#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define LR_WARDEN_TASKS_MAX  4096u
#define LR_WARDEN_BURIED_MAX 4096u
#define LR_WARDEN_VERSION    1u

/* Shared with the maker, which writes; a memory file, so that the keeper can read it, too
 * (_serve/inheriting.py). Descriptors are numbers in the shared table. */
struct lr_warden_page {
	char magic[8]; /* "LRWARD" */
	uint32_t version;
	int32_t maker;            /* pidfd */
	int32_t bell;             /* eventfd: something here has changed */
	int32_t socket;           /* where the keeper asks; the other end is the keeper's */
	_Atomic int32_t pid;      /* of the warden that is awake; 0: none */
	_Atomic int32_t keeper;   /* pidfd; -1: there is none */
	_Atomic uint32_t kills;   /* tasks are ended where nobody is left to serve them */
	_Atomic uint32_t is_left; /* of its maker's descriptors only graves are left */
	_Atomic int32_t watched;  /* pidfd of who is awake, which the other one looks at */
	uint32_t reserved;
	_Atomic uint64_t tasks[LR_WARDEN_TASKS_MAX];   /* pid << 32 | pidfd + 1; 0: free */
	_Atomic uint64_t buried[LR_WARDEN_BURIED_MAX]; /* userfaultfd + 1; 0: free */
};

/* What the keeper asks, in one packet, and what it is told, in one packet. */
enum lr_warden_request {
	LR_WARDEN_FETCH = 1, /* `number`: comes with it, or `value` is an errno */
	LR_WARDEN_LIST = 2,  /* all userfaultfds: `items` */
	LR_WARDEN_BURY = 3,  /* `number`: a userfaultfd that nobody else has */
	LR_WARDEN_LEAVE = 4, /* close all but those; is answered when that is done */
};

struct lr_warden_question {
	uint32_t request;
	int32_t number;
};

struct lr_warden_item {
	int32_t number;
	uint32_t reserved;
	uint64_t inode; /* two of one file have the same */
};

struct lr_warden_answer {
	uint32_t request;
	int32_t value;
	int32_t pid; /* the warden's */
	uint32_t count;
	struct lr_warden_item items[LR_WARDEN_BURIED_MAX];
};

/* The warden's own memory. */
struct lr_warden_self {
	struct lr_warden_page *page;
	uint32_t host_page;
	int other;   /* pidfd of the one in whose place it is to go on; -1: it is awake at once */
	bool is_own; /* the maker is dead: nobody else uses the table */
	uint32_t grave_count;
	int graves[LR_WARDEN_BURIED_MAX]; /* userfaultfds whose faults it answers */
	struct pollfd polls[LR_WARDEN_BURIED_MAX + 4];
	int32_t pids[2 * LR_WARDEN_TASKS_MAX]; /* room to work in */
	_Alignas(8) char text[1 << 16];        /* the same */
	struct lr_warden_answer answer;
};

/* Its life; `argument` is a struct lr_warden_self. */
int lr_warden_live(void *argument);
/* Give back memory: all that is not needed for this process to run on. */
void lr_warden_shed(struct lr_warden_self *self);
/* Answer what the keeper asks. */
void lr_warden_serve(struct lr_warden_self *self);
/* End every task and what descends from it, once; false: there was none that was not dead. */
bool lr_warden_kill(struct lr_warden_self *self);

/* From now on, answer the faults of a userfaultfd by poison. */
void lr_warden_bury(struct lr_warden_self *self, int uffd);
/* The same for those that the maker has given up. */
void lr_warden_take_buried(struct lr_warden_self *self);
/* The same for every userfaultfd in the table. */
void lr_warden_bury_all(struct lr_warden_self *self);
/* Answer what waits there now. */
void lr_warden_answer_graves(struct lr_warden_self *self);
/* Let go of those whose memory is gone. */
void lr_warden_forget_gone(struct lr_warden_self *self);
/* Whether a descriptor is a userfaultfd. */
bool lr_warden_is_uffd(int fd);
/* Close every descriptor but those, what the second warden looks at, and `other`. */
void lr_warden_close_others(struct lr_warden_self *self, int other);
/* One beyond the highest number that a descriptor may have. */
int lr_warden_table_end(void);
/* The text of a number, at `to`, after `prefix` and before `suffix`. */
void lr_warden_path(char *to, const char *prefix, int number, const char *suffix);

#endif
