/*
 * Threads of the library's own, and flags to wait for. Floor 1.
 */
#ifndef LR_THREAD_H
#define LR_THREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

/* A thread with a small stack that blocks all signals: 0, or an errno. */
int lr_thread_start(pthread_t *ret_thread, void *(*run)(void *), void *argument);

/* A flag that is raised once. Whoever waits for it sees what was written before. */
void lr_flag_raise(_Atomic uint32_t *flag);
void lr_flag_wait(_Atomic uint32_t *flag);

#endif
