/*
 * Threads of the library's own, and flags to wait for. Floor 1.
 */
#ifndef LR_THREAD_H
#define LR_THREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* A thread with a small stack that blocks all signals: 0, or an errno. */
int lr_thread_start(pthread_t *ret_thread, void *(*run)(void *), void *argument);

/* The calling one gets only what nobody else wants of the processors and of the disk. */
void lr_thread_yield_to_all(void);
/* Have a table of descriptors of the calling thread's own, with these and no others; -1 stands for
 * none. Orders them. False before Linux 5.9: the table stays the process's. */
bool lr_thread_keep(int *fds, unsigned count);

/* A flag that is raised once. Whoever waits for it sees what was written before. */
void lr_flag_raise(_Atomic uint32_t *flag);
void lr_flag_wait(_Atomic uint32_t *flag);

#endif
