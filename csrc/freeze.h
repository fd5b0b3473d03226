/*
 * Stopping every thread of another process, so that its memory can be read as it was at one moment.
 *
 * Floor 3 (above tracees). The public functions (lr_freeze_*) are declared in lazyrestore.h; this
 * header is for what its tests look at.
 *
 * How. ptrace belongs to a thread, not to a process: only the thread that attached can let go, and
 * when it ends the kernel lets go for it. So each lr_freeze has a thread of its own which attaches
 * (PTRACE_SEIZE: sends no signal), stops (PTRACE_INTERRUPT), waits to be told, and lets go.
 * Whatever happens to the program that dumps, SIGKILL included, its end is the end of that thread,
 * and the frozen process runs again.
 *
 * What is kept: a process that was stopped (SIGSTOP) stays so; a signal that was just being
 * delivered to a thread when it stopped is delivered after; signals that arrive meanwhile are
 * pending.
 */
#ifndef LR_FREEZE_H
#define LR_FREEZE_H

#include "lazyrestore.h"

/* How many threads are stopped. */
uint32_t lr_freeze_thread_count(const lr_freeze *freeze);

#endif
